"""How soon the server answers about a document that it read before it was restarted.

python3 tests/clients/restart.py [TOKENS] [FLAGS OF kiv serve ...]

The document is prose with one fact, of about so many tokens. Linux only: the system's
page cache is dropped before the restart if the user may do that, and it says so.
"""

import pathlib
import subprocess
import sys
import tempfile

from served import UNSTOPPED, Server, document


def ask(server: Server, text: str) -> None:
    answer = server.ask(text)
    known = answer.usage["prompt_tokens_details"]["cached_tokens"]
    told = f"{answer.usage['prompt_tokens']} tokens, {known} known"
    verdict = "right" if answer.is_right() else "WRONG: " + answer.text
    print(f"{told}: first word after {answer.first:.2f} s, {verdict}", flush=True)


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 65536
    text = document(tokens)
    with tempfile.TemporaryDirectory() as folder:
        flags = [*UNSTOPPED, "--kv-dir", folder, *sys.argv[2:]]
        with Server(*flags) as server:
            ask(server, text)
        subprocess.run(["sync"], check=True)
        try:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            print("restarted, the page cache dropped")
        except OSError:
            print("restarted, the page cache as it was")
        with Server(*flags) as server:
            ask(server, text)
            ask(server, text)


main()
