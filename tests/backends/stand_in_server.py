"""A small server that a proxy starts: `stand_in_server.py PORT NAME [HOW…] WORD`. It answers who it is, and dies when told.

SLOWLY: ready at the third look. NEVER: it ends before it is ready. DEAF: it does not hear SIGTERM.
FORKS: it has a child that does not. HELD: not before somebody writes into the pipe `gate` in the folder WORD.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME, *HOW = sys.argv[1:]
LOOKS = [0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Silent."""

    def do_GET(self):
        LOOKS[0] += 1
        self.answer(503 if "SLOWLY" in HOW and LOOKS[0] < 3 else 200, b"{}", "application/json")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = asked["messages"][-1]["content"]
        if said == "die":
            os._exit(7)
        if said == "slow":
            print("a slow call begins", flush=True)
            time.sleep(1)
        text = f"{NAME} {os.getpid()} {os.environ.get('OWN', '')}{os.environ.get('MOOLTIPROXY_KEY', '')}".strip()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": NAME, "choices": [choice]}
        self.answer(200, json.dumps(body).encode(), "application/json")

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print(f"{NAME} is loading", flush=True)
if "DEAF" in HOW:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "NEVER" in HOW:
    sys.exit("out of \x1b[31mmemory\x1b[0m")
if "HELD" in HOW:
    with open(os.path.join(HOW[-1], "gate")) as gate:  # until somebody writes into it
        gate.read()
if "FORKS" in HOW and os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
