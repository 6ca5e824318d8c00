"""Reads a Parquet file with pyarrow and prints its types and rows as JSON; decimals and moments as text."""
import datetime
import decimal
import json
import sys

import pyarrow.parquet as parquet


def shown(value):
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, bytes):
        return value.hex()
    return value


table = parquet.read_table(sys.argv[1])
types = {field.name: str(field.type) for field in table.schema}
rows = [{name: shown(value) for name, value in row.items()} for row in table.to_pylist()]
json.dump({"types": types, "rows": rows}, sys.stdout)
