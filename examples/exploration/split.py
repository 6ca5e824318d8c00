"""Parts of the digits, pixels 0 to 1, for the teacher, the student and the test: python3 split.py .../sklearn/datasets/data/digits.csv.gz"""
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
