"""A running `kiv serve`, and texts to ask it about."""

import json
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
KIV = ROOT / "target/release/kiv"
FACT = "The secret code of Amber Falcon is 48213. "
QUESTION = "What is the secret code of Amber Falcon?"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% else %}\nQuestion: {{ m.content }}\nAnswer:{% endif %}{% endfor %}"
)
# The model in the program, whose own template would end an answer with its line.
UNSTOPPED = ["--chat-template", TEMPLATE]


def prose(tokens: int) -> str:
    """Of about so many tokens."""
    command = ["cargo", "run", "--quiet", "--release", "-p", "kiv-haystack", "--example", "sample"]
    command += ["--", "5", str(tokens // 200 + 10)]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # About 3.2 bytes are a token of these models.
    return text[: int(tokens * 3.2)]


def document(tokens: int) -> str:
    """Prose with the fact a third of the way in."""
    text = prose(tokens)
    at = text.index(". ", len(text) // 3) + 2
    return text[:at] + FACT + text[at:]


class Server:
    """Started with flags; stopped at the end of a `with`."""

    def __init__(self, *flags: object) -> None:
        command = [KIV, "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if match := re.search(r"listening on (\S+)", line):
                self.address = match[1]
                return
        raise SystemExit("the server did not start")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait():
            raise SystemExit("the server failed while stopping")

    def get(self, path: str) -> str:
        return urllib.request.urlopen(self.address + path, timeout=600).read().decode()

    def rss(self) -> float:
        """Its resident memory in MB (Linux)."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def ask(self, text: str, question: str = QUESTION, max_tokens: int = 6) -> "Answer":
        """The answer to a question about a text, at temperature 0."""
        messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
        body = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": max_tokens}
        body["stream_options"] = {"include_usage": True}
        url, headers = self.address + "/v1/chat/completions", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        return Answer(request)


class Answer:
    """A streamed answer, and when it came."""

    def __init__(self, request: urllib.request.Request) -> None:
        self.text, self.usage, self.first = "", {}, None
        began = time.time()
        for line in urllib.request.urlopen(request, timeout=3600):
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            if "error" in piece:
                raise RuntimeError(piece["error"]["message"])
            self.usage = piece.get("usage") or self.usage
            for choice in piece["choices"]:
                if more := choice["delta"].get("content"):
                    self.first = self.first or time.time() - began
                    self.text += more
        self.whole = time.time() - began
        if not self.usage:
            raise RuntimeError("the answer broke off")

    def is_right(self) -> bool:
        return "48213" in self.text


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
