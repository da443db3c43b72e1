"""One clear line from an exception of Hydra's, OmegaConf's or ours."""

import re


def one_line(error: BaseException) -> str:
    """The error as one line that names the value, what is allowed, and what to do."""
    text = str(error)
    choices = re.search(
        r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+(.*?)(?:\s+Config search|$)", text, re.S
    )
    if choices:
        wanted, group, options = choices.groups()
        name = wanted.removeprefix(f"{group}/")
        return f"{group}={name}: there is no such {group}; available are: {', '.join(options.split())}"
    key = re.search(r"Key '([^']+)' (?:is not in struct|not in )", text)
    if key and (full := re.search(r"full_key: (\S+)", text)):
        return (
            f"there is no key '{full.group(1)}'; 'fsl-simulate --cfg job' lists them all, +{full.group(1)}=... adds one"
        )
    return " ".join(text.split())
