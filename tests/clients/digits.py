"""Digits: a scikit-learn classifier behind mlserver, and a client that asks it through an address.

digits.py fit FOLDER           fits a logistic regression, writes mlserver's settings and digits.csv; prints its accuracy
digits.py serve FOLDER         runs mlserver there (settings.json names the ports)
digits.py ask ADDRESS N        asks about the first N digits in batches of 32 by tritonclient; prints their classes
"""

import json
import os
import sys


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data / 16.0, data.target


def fit(folder, http, grpc, metrics):
    import joblib
    from sklearn.linear_model import LogisticRegression

    inputs, labels = digits()
    model = LogisticRegression(max_iter=300).fit(inputs[:1200], labels[:1200])
    joblib.dump(model, os.path.join(folder, "model.joblib"))
    settings = {
        "host": "127.0.0.1",
        "http_port": int(http),
        "grpc_port": int(grpc),
        "metrics_port": int(metrics),
        "parallel_workers": 0,
    }
    implementation = "mlserver_sklearn.SKLearnModel"
    model_settings = {"name": "digits", "implementation": implementation, "parameters": {"uri": "./model.joblib"}}
    for name, value in [("settings.json", settings), ("model-settings.json", model_settings)]:
        with open(os.path.join(folder, name), "w") as file:
            json.dump(value, file)
    with open(os.path.join(folder, "digits.csv"), "w") as file:
        print(*[f"p{at}" for at in range(inputs.shape[1])], "label", sep=",", file=file)
        for row, label in zip(inputs, labels):
            print(*[f"{number:.4f}" for number in row], label, sep=",", file=file)
    json.dump({"accuracy": model.score(inputs[1200:], labels[1200:]), "rows": len(labels)}, sys.stdout)


def serve(folder):
    from mlserver.cli import main

    sys.argv = ["mlserver", "start", folder]
    main()


def ask(address, count):
    import tritonclient.http

    client = tritonclient.http.InferenceServerClient(address)
    inputs, _ = digits()
    inputs = inputs[: int(count)]
    classes = []
    for start in range(0, len(inputs), 32):
        batch = inputs[start : start + 32]
        tensor = tritonclient.http.InferInput("predict", list(batch.shape), "FP64")
        tensor.set_data_from_numpy(batch, binary_data=False)
        output = tritonclient.http.InferRequestedOutput("predict_proba", binary_data=False)
        answer = client.infer("digits", [tensor], outputs=[output], headers={"x-tuition-run": "digits"})
        classes += answer.as_numpy("predict_proba").argmax(axis=1).tolist()
    json.dump({"classes": classes}, sys.stdout)


if __name__ == "__main__":
    {"fit": fit, "serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
