"""A worker that prints, counts, and ends badly when it is told to."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.speed.protocol import Channel, serve


def main() -> None:
    channel = Channel()
    start = channel.options["start"]
    seen: list[Any] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        print("a library talks")
        if request["do"] == "fail":
            sys.exit("no memory left")
        seen.append(request)
        return {"seconds": start + len(seen)}

    channel.reply({"hello": start})
    serve(channel, answer)


if __name__ == "__main__":
    main()
