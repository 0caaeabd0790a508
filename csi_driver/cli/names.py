"""Names that a user may give: Kubernetes' rule, so that a name is safe in a shell, a path, a table and a label."""

import re

import typer

from csi_driver.domain.ids import MAX_NAME_BYTES

_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)


def check_new_name(text: str, what: str) -> None:
    """Refuse a name that Kubernetes would refuse, with one like it that is accepted. `what`: the kind of object."""
    if len(text) > MAX_NAME_BYTES:
        raise typer.BadParameter(
            f"the name of a {what} has at most {MAX_NAME_BYTES} characters, this one {len(text)}: use a shorter one"
        )
    if _SUBDOMAIN.fullmatch(text):
        return
    near = re.sub(r"[^a-z0-9.]+", "-", text.lower())
    near = ".".join(part.strip("-") for part in near.split(".") if part.strip("-"))
    raise typer.BadParameter(
        f"{text!r} cannot be the name of a {what}: use lower-case letters, digits, - and ., e.g. {near or 'db-1'}"
    )
