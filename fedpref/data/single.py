"""Records of one answer (judged completions, demonstrations, prompts) in the shape of preference pairs.

An empty answer is one that is not there; pairs never have one, for they are refused (FP211). So splits, partitions and
bounds, which look at members and texts alone, serve all formats.

| format | better | worse |
|---|---|---|
| unpaired_preference, label true | the completion | empty |
| unpaired_preference, label false | empty | the completion |
| prompt_completion | the completion | empty |
| prompt_only | the reference answer, if there is one | empty |
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from fedpref.data.preferences import Index, Preferences, RecordProblem, pack, problems_of
from reward.pairs import Conversation

if TYPE_CHECKING:
    from datasets import Dataset


def check_single(dataset: Dataset, numbers: Index) -> tuple[Preferences, list[RecordProblem]]:
    """Leave out what says nothing, judged within each record and user alone.

    Args:
        numbers: the file's row number of each record.

    Returns:
        the records that remain, in order, and the problems found (row numbers count from 1).
    """
    index: dict[Conversation, int] = {}
    kept, seen = [], set()
    problems: dict[str, list[int]] = defaultdict(list)
    for number, record in zip(numbers.tolist(), dataset, strict=True):
        better, worse = _sides(record)
        user = record["user_id"]
        if not better.prompt[-1][1].strip() or ("completion" in record and not (better.completion + worse.completion)):
            problems["FP211"].append(number)
        elif (user, better, worse) in seen:
            problems["FP213"].append(number)
        else:
            seen.add((user, better, worse))
            places = [index.setdefault(side, len(index)) for side in (better, worse)]
            kept.append((places[0], places[1], user, record["topic"], record["client"]))
    return pack(index, kept), problems_of(problems)


def _sides(record: Any) -> tuple[Conversation, Conversation]:
    prompt = tuple((m["role"], m["content"]) for m in record["prompt"])
    text = record["completion"][0]["content"].strip() if "completion" in record else str(record.get("answer") or "")
    there, nothing = Conversation(prompt, text), Conversation(prompt, "")
    return (there, nothing) if record.get("label", True) else (nothing, there)
