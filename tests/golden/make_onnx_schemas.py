"""Write tests/golden/onnx_schemas.json: what the package `onnx` allows for each operation that resfit writes.

`python -m tests.golden.make_onnx_schemas`, in an environment with onnx. `tests/export/onnx_interpreter.py` compares
every node with it, so that `make test` finds a node that onnx refuses without the package.
"""

import json
from typing import Any

import onnx

from tests.export.onnx_interpreter import OPERATIONS, SCHEMAS

OLDEST, NEWEST = 13, 21  # of the versions that the tests write


def described(schema: Any) -> dict[str, Any]:
    """Return attributes, numbers and dtypes of the inputs of one version of an operation."""
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    return {
        "since": schema.since_version,
        "attributes": {name: one.required for name, one in sorted(schema.attributes.items())},
        "inputs": [schema.min_input, schema.max_input],
        "types": [
            sorted(
                text.removeprefix("tensor(")[:-1]
                for text in allowed.get(one.type_str, [one.type_str])
                if text.startswith("tensor(")
            )
            for one in schema.inputs
        ],
    }


def main() -> None:
    """Write the file."""
    lines = []
    for op in sorted(OPERATIONS):
        versions = {}
        for opset in range(OLDEST, NEWEST + 1):
            schema = onnx.defs.get_schema(op, opset)
            versions[schema.since_version] = described(schema)
        lines.append(f"{json.dumps(op)}: {json.dumps([versions[since] for since in sorted(versions)])}")
    SCHEMAS.write_text(f'{{"onnx": "{onnx.__version__}", "operations": {{\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
