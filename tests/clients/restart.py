"""How soon the server answers about a document that it read before it was restarted.

python3 tests/clients/restart.py [TOKENS] [FLAGS OF kiv serve ...]

The document is prose with one fact, of about so many tokens. Linux only: the system's
page cache is dropped before the restart if the user may do that, and it says so.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
KIV = ROOT / "target/release/kiv"
MODEL = ROOT / "models/tiny-f16.gguf"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% else %}\nQuestion: {{ m.content }}\nAnswer:{% endif %}{% endfor %}"
)
FACT = "The secret code of Amber Falcon is 48213. "


def document(tokens: int) -> str:
    command = ["cargo", "run", "--quiet", "--release", "-p", "kiv-haystack", "--example", "sample"]
    command += ["--", "5", str(tokens // 200 + 10)]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # About 3.2 bytes are a token of this model.
    text = text[: int(tokens * 3.2)]
    at = text.index(". ", len(text) // 3) + 2
    return text[:at] + FACT + text[at:]


class Server:
    def __init__(self, folder: str, flags: list[str]) -> None:
        command = [KIV, "serve", "--port", "0", "--kv-dir", folder, "-m", MODEL]
        command += ["--chat-template", TEMPLATE, *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if match := re.search(r"listening on (\S+)", line):
                self.address = match[1]
                return
        raise SystemExit("the server did not start")

    def ask(self, text: str) -> None:
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": "What is the secret code of Amber Falcon?"},
        ]
        body = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": 6}
        body["stream_options"] = {"include_usage": True}
        url, headers = self.address + "/v1/chat/completions", {"Content-Type": "application/json"}
        began, first, answer, usage = time.time(), None, "", {}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        for line in urllib.request.urlopen(request):
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            usage = piece.get("usage") or usage
            for choice in piece["choices"]:
                if more := choice["delta"].get("content"):
                    first = first or time.time() - began
                    answer += more
        known = usage["prompt_tokens_details"]["cached_tokens"]
        told = f"{usage['prompt_tokens']} tokens, {known} known: first word after {first:.2f} s"
        print(f"{told}, {'right' if '48213' in answer else 'WRONG: ' + answer}", flush=True)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait():
            raise SystemExit("the server failed while stopping")


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 65536
    text = document(tokens)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, sys.argv[2:])
        server.ask(text)
        server.stop()
        subprocess.run(["sync"], check=True)
        try:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            print("restarted, the page cache dropped")
        except OSError:
            print("restarted, the page cache as it was")
        server = Server(folder, sys.argv[2:])
        server.ask(text)
        server.ask(text)
        server.stop()


main()
