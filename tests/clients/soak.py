"""Many clients at once, for long: no error, each answer as if asked alone, memory flat.

python3 tests/clients/soak.py [--minutes 10] [--clients 32] [FLAGS OF kiv serve ...]

Every client has texts of its own and asks about them over and over, at temperature 0.
What is right is what a server of its own answered to each, one after the other. Linux
only: memory is read from /proc.
"""

import argparse
import random
import threading
import time

from served import Server, prose, quantile

# Texts of one client.
TEXTS = 2
# Longest text, in tokens about.
LONGEST = 600
# Memory may grow by so much, MB, once a tenth of the time is over: allocators are not
# exact. A tenth of what there is then comes on top.
SLACK = 32


def texts(clients: int) -> list[list[str]]:
    """Each with a code of its own, and prose of any length after it."""
    chance, words = random.Random(7), prose(LONGEST)

    def one() -> str:
        fact = f"The secret code of Amber Falcon is {chance.randrange(10000, 100000)}. "
        return fact + words[: chance.randrange(len(words))]

    return [[one() for _ in range(TEXTS)] for _ in range(clients)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    args, flags = parser.parse_known_args()
    all_texts = texts(args.clients)
    with Server(*flags) as server:
        alone = {text: server.ask(text, max_tokens=16).text for of in all_texts for text in of}
    print(f"{len(alone)} answers given alone", flush=True)

    wrong, times, memory = [], [], []
    with Server(*flags) as server:
        end = time.time() + 60 * args.minutes

        def client(of: list[str]) -> None:
            asked = 0
            while time.time() < end:
                text = of[asked % len(of)]
                asked += 1
                try:
                    answer = server.ask(text, max_tokens=16)
                except Exception as error:  # Whatever it is, it counts.
                    wrong.append(f"{type(error).__name__}: {error}")
                    continue
                times.append(answer.whole)
                if answer.text != alone[text]:
                    wrong.append(f"{answer.text!r} instead of {alone[text]!r}")

        threads = [threading.Thread(target=client, args=[of]) for of in all_texts]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(server.rss())
            time.sleep(0.5)
        memory.append(server.rss())
        metrics = server.get("/metrics")
    assert "kiv_requests_open 0\n" in metrics, metrics
    early = memory[len(memory) // 10]
    print(f"{args.clients} clients, {args.minutes:g} min: {len(times)} answers")
    assert times, "no answer at all"
    print(f"whole answer: p50 {quantile(times, 0.5):.2f} s, p95 {quantile(times, 0.95):.2f} s")
    told = f"first {memory[0]:.0f}, after a tenth {early:.0f}, most {max(memory):.0f}, last {memory[-1]:.0f}"
    print(f"resident memory, MB: {told}")
    for what in wrong[:10]:
        print(f"WRONG: {what}")
    assert not wrong, f"{len(wrong)} of {len(times)} answers are wrong or missing"
    assert max(memory) <= 1.1 * early + SLACK, "memory grows"


main()
