"""YAML in which no key is given twice."""

from __future__ import annotations

from typing import Any

import yaml

from sharedllm.errors import UsageError


class NoRepeats(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently resolve to the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"The key '{key}' is given twice in one block of the recipe; keep one of them.")
        return super().construct_mapping(node, deep)
