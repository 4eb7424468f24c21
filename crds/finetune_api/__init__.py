"""The Finetune API: the resource, the contract between operator and trainer, and the CRD made from them.

Pure: standard library and pydantic, no I/O (PyYAML in `__main__` alone).
"""
