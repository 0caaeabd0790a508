"""What must be found after the power was cut: everything that was answered, and of what was not, all or nothing."""

import copy
from collections import Counter
from typing import Any

from csi_driver.domain.ids import Kind, member_name, name_hash

Facts = dict[str, Any]
State = dict[str, dict[str, Facts]]
"""Facts by kind and id: size in bytes; the numbers in a raw disk's blocks, or what is known of the files in it."""
FILES = ("a", "b")
"""The disks with file systems; one writer writes file n in a, then in b, then n + 1 in a."""


def id_of(kind: Kind, name: str) -> str:
    """The id that a name gets."""
    return f"node1:default:{name_hash(kind, name)}"


class Model:
    """What all boots reported to the host so far."""

    def __init__(self) -> None:
        self.state: State = {"volume": {}, "snapshot": {}}
        self.begun = dict.fromkeys(FILES, 0)
        self.written = dict.fromkeys(FILES, 0)
        self.pending: Facts | None = None
        self._found: State = {"volume": {}, "snapshot": {}}
        self.counts: Counter[str] = Counter()

    def hear(self, line: Facts) -> None:
        """Take one line of the machine. Raises AssertionError where it contradicts what was reported before."""
        if "broken" in line:
            raise AssertionError(f"{line['broken']}\n{line['log']}")
        if "writer" in line:
            announced = self.begun if "begin" in line else self.written
            announced[line["writer"]] = line.get("begin") or line["done"]
        elif "begin" in line:
            self.pending = line | {"written": dict(self.written)}
        elif "done" in line:
            assert self.pending is not None
            assert self.pending["begin"] == line["done"]
            self.counts[f"done: {line['done']}"] += 1
            self.state = self._after(self.pending, line.get("safety", ""))
            self.pending = None
        elif "found" in line:
            self._found[line["found"]][line["id"]] = line
        elif "all" in line:
            self._compare(line)

    def cut(self) -> None:
        """The power went."""
        self._found = {"volume": {}, "snapshot": {}}
        if self.pending is not None:
            self.counts[f"cut: {self.pending['begin']}"] += 1

    # ---- what a call does

    def _after(self, op: Facts, safety: str = "") -> State:
        state = copy.deepcopy(self.state)
        volumes, snapshots = state["volume"], state["snapshot"]
        volume = id_of("volume", op.get("volume", op.get("name", "")))
        match op["begin"]:
            case "create" if op["name"] in FILES:
                volumes[volume] = {"size": op["size"], "files": {}}
            case "create":
                volumes[volume] = {"size": op["size"], "blocks": {}}
            case "clone":
                volumes[volume] = {"size": op["size"], "blocks": dict(snapshots[op["snapshot"]]["blocks"])}
            case "write":
                volumes[volume]["blocks"][str(op["block"])] = op["number"]
            case "expand":
                volumes[volume]["size"] = op["size"]
            case "snapshot":
                snapshots[id_of("snapshot", op["name"])] = self._cut_of(op, volume)
            case "group":
                for name in FILES:
                    source = id_of("volume", name)
                    member = self._cut_of(op, source) | {"group": id_of("group", op["name"])}
                    snapshots[id_of("snapshot", member_name(op["name"], source))] = member
            case "delete volume":
                del volumes[volume]
            case "delete snapshot":
                del snapshots[op["id"]]
            case "delete group":
                state["snapshot"] = {key: cut for key, cut in snapshots.items() if cut.get("group") != op["id"]}
            case "rollback":
                if safety:
                    snapshots[safety] = copy.deepcopy(volumes[volume])
                volumes[volume]["blocks"] = dict(snapshots[op["snapshot"]]["blocks"])
        return state

    def _cut_of(self, op: Facts, source: str) -> Facts:
        """A snapshot of what a disk holds now; of files, between what was written before and what was begun until now."""
        facts = copy.deepcopy(self.state["volume"][source])
        name = next((name for name in FILES if id_of("volume", name) == source), None)
        if name is not None:
            facts["files"] = {"least": op["written"][name], "most": self.begun[name]}
        return facts

    def _outcomes(self, found: State) -> list[State]:
        """The states that may be found: before the call that was cut off, and after it."""
        if self.pending is None:
            return [self.state]
        outcomes = [self.state]
        if self.pending["begin"] != "rollback":
            return [*outcomes, self._after(self.pending)]
        # The safety snapshot comes first, and only then the rollback.
        for new in found["snapshot"].keys() - self.state["snapshot"].keys():
            if found["snapshot"][new]["name"].startswith("safety-"):
                after = self._after(self.pending, new)
                between = copy.deepcopy(self.state)
                between["snapshot"][new] = after["snapshot"][new]
                outcomes += [between, after]
        return outcomes

    # ---- comparing

    def _compare(self, line: Facts) -> None:
        assert line["strange"] == [], f"the pool holds what nobody serves: {line['strange']}"
        assert line["loops"] == [], f"attached, though nothing is in use: {line['loops']}"
        found, self._found = self._found, {"volume": {}, "snapshot": {}}
        for item in (*found["volume"].values(), *found["snapshot"].values()):
            assert item["bytes"] == item["size"], f"{item['name']!r}: an image of {item['bytes']} bytes"
        reasons = [self._difference(found, wanted) for wanted in self._outcomes(found)]
        assert "" in reasons, f"{self.pending} was cut off, and found is neither of: " + " / ".join(reasons)
        if self.pending is not None:
            self.counts["found: done" if reasons.index("") else "found: not done"] += 1
        self.state = {kind: {key: _kept(item) for key, item in items.items()} for kind, items in found.items()}
        self.pending = None

    def _difference(self, found: State, wanted: State) -> str:
        for kind, items in wanted.items():
            if items.keys() != found[kind].keys():
                return f"{kind}s {sorted(items.keys() ^ found[kind].keys())} too many or missing"
            for key, facts in items.items():
                other = found[kind][key]
                if other["size"] != facts["size"]:
                    return f"{other['name']!r} has {other['size']} bytes, not {facts['size']}"
                if "files" in facts and "files" in other:
                    if reason := self._difference_of_files(other, facts["files"]):
                        return f"{other['name']!r}: {reason}"
                elif "files" not in facts and other.get("blocks") != facts["blocks"]:
                    return f"{other['name']!r} holds {other.get('blocks')}, not {facts['blocks']}"
                elif "files" in facts and (kind == "snapshot" or self.written[other["name"]]):
                    return f"{other['name']!r} has lost its file system"
        return self._order_of_groups(found["snapshot"])

    def _difference_of_files(self, found: Facts, wanted: Facts) -> str:
        files = found["files"]
        if "last" in wanted:
            return "" if files == wanted else f"holds {files}, and before {wanted}"
        if found["found"] == "volume":
            name = found["name"]
            least, most = self.written[name], self.begun[name]
        else:
            least, most = wanted["least"], wanted["most"]
        if files["missing"] or not least <= files["last"] <= most:
            return f"files 1 to {least} at least, {most} at most: {files}"
        return "" if all(number > least for number in files["torn"]) else f"{files} torn, {least} were durable"

    def _order_of_groups(self, snapshots: dict[str, Facts]) -> str:
        """A member of a is never behind the one of b, and never ahead by more than one."""
        for group in {cut["group"] for cut in snapshots.values() if cut["group"]}:
            reached = {
                cut["source"]: cut["files"]["last"]
                for cut in snapshots.values()
                if cut["group"] == group and "files" in cut
            }
            a, b = (reached.get(id_of("volume", name), 0) for name in FILES)
            if not a - 1 <= b <= a:
                return f"group {group} was cut at two moments: {a} in a, {b} in b"
        return ""


def _kept(item: Facts) -> Facts:
    """What will be expected the next time: of a snapshot exactly this."""
    kept = {"size": item["size"], "group": item["group"]}
    if "blocks" in item and item["name"] not in FILES:
        return kept | {"blocks": item["blocks"]}
    return kept | {"files": item["files"] if item["found"] == "snapshot" and "files" in item else {}}
