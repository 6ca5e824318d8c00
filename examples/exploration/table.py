"""The tables of docs/results/exploration.md, from the reports that the two sweeps left in runs/: python3 table.py"""
import glob
import json
import statistics
from collections import defaultdict

# Student's t, two-sided 95 %, by degrees of freedom.
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145]

scores = defaultdict(dict)
for path in glob.glob("runs/*.*.*.s*/report.json"):
    sweep, method, budget, seed = path.split("/")[1].split(".")
    with open(path) as file:
        accuracy = json.load(file)["test"]["accuracy"]["mean"]
    scores[sweep, method, int(budget)][int(seed[1:])] = 100 * accuracy


def interval(values):
    if len(values) < 2:
        return "-"
    half = T[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def cell(*key):
    values = list(scores[key].values())
    return interval(values) + ("" if len(values) in (0, 10) else f" ({len(values)} seeds)")


def difference(one, other):
    seeds = sorted(scores[one].keys() & scores[other].keys())
    values = [scores[one][seed] - scores[other][seed] for seed in seeds]
    return interval(values) + ("" if len(values) in (0, 10) else f" ({len(values)} seeds)")


def unlimited(method):
    return ("unlimited", method, 30 if method in ("ce", "kd") else 4030)


METHODS = ["ce", "kd", "noise-01", "noise-03", "noise-10", "random", "gradient", "random-20", "random-32"]
print("| method | calls | accuracy, % | minus KD |\n| --- | --- | --- | --- |")
for method in METHODS:
    print(f"| {method} | {unlimited(method)[2]} | {cell(*unlimited(method))} | {difference(unlimited(method), unlimited('kd'))} |")
print()
for one, other in [("random", "kd"), ("random", "noise-01"), ("random", "noise-03"), ("random", "noise-10"), ("gradient", "random"), ("random-32", "noise-10")]:
    print(f"| {one} - {other} | {difference(unlimited(one), unlimited(other))} |")

BUDGETS = [60, 120, 480, 1920]
print("\n| 30 real, then | Q = 60 | 120 | 480 | 1920 |\n| --- | --- | --- | --- | --- |")
for method in ["real", "latent", "latent-30", "mixup", "noise-03", "noise-10"]:
    print(f"| {method} | " + " | ".join(cell("caps", method, budget) for budget in BUDGETS) + " |")
print()
for one, other in [("real", "latent"), ("latent", "latent-30"), ("latent", "mixup"), ("latent-30", "mixup"), ("mixup", "noise-03"), ("mixup", "noise-10"), ("real", "noise-10")]:
    row = [difference(("caps", one, budget), ("caps", other, budget)) for budget in BUDGETS]
    print(f"| {one} - {other} | " + " | ".join(row) + " |")
