"""Parts of the digits, pixels 0 to 1, for the teacher, the student (once more with a long tail of classes) and the test: python3 split.py .../sklearn/datasets/data/digits.csv.gz"""
import gzip
import sys

rows = [line.strip().split(",") for line in gzip.open(sys.argv[1], "rt")]
if len(rows[0]) == 65 and not rows[0][0].replace(".", "").isdigit():
    rows = rows[1:]
header = ",".join([f"pixel_{at}" for at in range(64)] + ["label"])
files = {"test.csv": range(0, 5), "teacher.csv": range(5, 12), "learn.csv": range(12, 18)}
for name, places in files.items():
    with open(name, "w") as file:
        print(header, file=file)
        for at, row in enumerate(rows):
            if (at + 2) % 18 in places:
                pixels = [f"{float(value) / 16:g}" for value in row[:64]]
                print(",".join(pixels + [str(int(float(row[64])))]), file=file)

# Of each class three fifths of what the class before it has, at least one.
left = [int(max(1, 60 * 0.6**label)) for label in range(10)]
with open("learn.csv") as file, open("long.csv", "w") as long:
    print(next(file), end="", file=long)
    for line in file:
        label = int(line.rsplit(",", 1)[1])
        if left[label] > 0:
            left[label] -= 1
            print(line, end="", file=long)
