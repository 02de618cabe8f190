"""How soon a short chat is answered while a long text is being read.

python3 tests/clients/during_prefill.py [TOKENS] [FLAGS OF kiv serve ...]

Short chats are asked one after the other until the text of about so many tokens is read,
and some before, when nothing else is done.
"""

import json
import sys
import threading
import time

from served import FACT, UNSTOPPED, Server, document, quantile


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 262144
    text = document(tokens)
    with Server(*UNSTOPPED, *sys.argv[2:]) as server:

        def short(name: int) -> float:
            # Another text each time: nothing of it is known.
            answer = server.ask(f"Letter {name}. {FACT}")
            assert answer.is_right(), answer.text
            return answer.first

        def told(when: str, times: list[float]) -> None:
            p50, most = quantile(times, 0.5), max(times)
            print(f"{when}: {len(times)} short chats, first word after {p50:.2f} s (median), {most:.2f} s (longest)")

        told("alone", [short(name) for name in range(5)])
        long = []
        reader = threading.Thread(target=lambda: long.append(server.ask(text)))
        reader.start()
        while not any(slot["is_processing"] for slot in json.loads(server.get("/slots"))):
            assert reader.is_alive(), "the long text was not taken"
            time.sleep(0.01)
        times = []
        while reader.is_alive():
            # Only chats that began and ended while the text was read are counted.
            time_of_one = short(100 + len(times))
            if reader.is_alive():
                times.append(time_of_one)
        reader.join()
        (answer,) = long
        verdict = "right" if answer.is_right() else "WRONG: " + answer.text
        read = answer.usage["prompt_tokens"]
        print(f"the long text: {read} tokens, first word after {answer.first:.2f} s, {verdict}")
        assert times, "no chat ended while the text was read: ask for more tokens"
        told("while it was read", times)


main()
