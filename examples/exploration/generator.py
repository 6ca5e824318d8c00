"""Generators from elsewhere as pairs of ONNX files, fitted to learn.csv: scikit-learn's PCA, and an autoencoder of its MLPRegressor, 16 latents each.

pip install numpy onnx scikit-learn && python3 generator.py
"""
import numpy
import onnx
from onnx import helper, numpy_helper
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPRegressor

LATENT = 16


def save(name, layers, activation):
    """Rows of f32 to rows of f32: each layer is a matrix and an offset, with an activation between them."""
    nodes, weights, at = [], [], "x"
    for number, (matrix, offset) in enumerate(layers):
        for kind, value in (("w", matrix), ("b", offset)):
            weights.append(numpy_helper.from_array(numpy.asarray(value, "float32"), f"{kind}{number}"))
        last = number + 1 == len(layers)
        to = "y" if last else f"h{number}"
        nodes.append(helper.make_node("Gemm", [at, f"w{number}", f"b{number}"], [to if last else f"g{number}"]))
        if not last:
            nodes.append(helper.make_node(activation, [f"g{number}"], [to]))
        at = to
    rows = lambda name, width: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width])
    first, last = layers[0][0].shape[0], layers[-1][0].shape[1]
    graph = helper.make_graph(nodes, name, [rows("x", first)], [rows("y", last)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, f"{name}.onnx")


pixels = numpy.loadtxt("learn.csv", delimiter=",", skiprows=1)[:, :64]
pca = PCA(LATENT, svd_solver="full").fit(pixels)
save("pca-encoder", [(pca.components_.T, -pca.mean_ @ pca.components_.T)], None)
save("pca-decoder", [(pca.components_, pca.mean_)], None)

# The bottleneck is between the second layer and the third; its tanh is the encoder's.
own = MLPRegressor(hidden_layer_sizes=(128, LATENT, 128), activation="tanh", max_iter=2000, random_state=0).fit(pixels, pixels)
layers = list(zip(own.coefs_, own.intercepts_))
identity = (numpy.eye(LATENT), numpy.zeros(LATENT))
save("mlp-encoder", [*layers[:2], identity], "Tanh")
save("mlp-decoder", layers[2:], "Tanh")
print(f"mean square error: PCA {numpy.mean((pca.inverse_transform(pca.transform(pixels)) - pixels) ** 2):.4f}, MLP {numpy.mean((own.predict(pixels) - pixels) ** 2):.4f}")
