"""A stand-in for llama.cpp's executables: it takes their arguments, refuses others, and says what a test wants.

It is installed under their names, of today and of 2023 (`install`), and its model is a file that need not be there. A byte is a
token. The last scenario named in the prompt decides what it completes; without one, "Hello world!". Some are mischief.
"""

import json
import os
import signal
import sys
import time

TODAY = {
    **dict.fromkeys(("--model", "--threads", "--batch-size", "--ctx-size", "--predict", "--binary-file", "--temp"), str),
    **dict.fromkeys(("--top-p", "--top-k", "--min-p", "--seed", "--repeat-penalty", "--frequency-penalty"), str),
    **dict.fromkeys(("--presence-penalty", "--json-schema", "--grammar"), str),
    **dict.fromkeys(("--no-escape", "--no-conversation", "--no-display-prompt", "--simple-io"), bool),
    "--reverse-prompt": list,
}
CHAT = {  # llama-cli chats: what it is told of a prompt is a system message and a template
    **{name: kind for name, kind in TODAY.items() if name not in ("--binary-file", "--no-conversation", "--no-display-prompt")},
    **dict.fromkeys(("--system-prompt-file", "--prompt", "--chat-template", "--color"), str),
    **dict.fromkeys(("--jinja", "--skip-chat-parsing", "--single-turn", "--no-show-timings", "--no-warmup"), bool),
}
CHATTED = "<|im_start|>system\n%s<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
EMBED = {
    **dict.fromkeys(("--model", "--threads", "--ctx-size", "--batch-size", "--ubatch-size", "--binary-file"), str),
    **dict.fromkeys(("--embd-output-format", "--embd-separator", "--pooling"), str),
    "--no-escape": bool,
}
TOKENIZE = {"--model": str, "--file": str, **dict.fromkeys(("--ids", "--no-bos", "--log-disable", "--no-escape"), bool)}
THEN = {
    **dict.fromkeys(("--model", "--threads", "--batch_size", "-c", "-n", "--temp", "--top_p", "--prompt"), str),
    **dict.fromkeys(("--repeat-penalty",), str),
    "-r": list,
}
PROMPT = {"--model": str, "--prompt": str}
SAYS = {
    "say hello": ["Hel", "lo", " wor", "ld", "!"],
    "count up": [" one", " two", " three", " four", " five", " six"],
    "run long": [" on"] * 40,
    "use stop": ["before", " ST", "OP", " after"],
    "say é": [b"\xc3", b"\xa9", b"\xc3", b"\xa9", "!"],
    "say nonsense": [b"\xff\xfe", "ok", b"\xe2\x82"],
}


def parsed(options):
    given, rest = {}, sys.argv[1:]
    while rest:
        name, *rest = rest
        kind = options.get(name)
        if kind is None or (kind is not bool and not rest):
            sys.exit(f"error: invalid argument: {name}")
        if kind is bool:
            given[name] = True
        else:
            value, *rest = rest
            given[name] = [*given.get(name, []), value] if kind is list else value
    return given


def prompt_of(given):
    for name in ("--binary-file", "--file"):
        if name in given:
            with open(given[name], "rb") as file:
                return file.read().decode("utf-8")
    return given["--prompt"]


def write(piece):
    os.write(1, piece if isinstance(piece, bytes) else piece.encode())


def misbehave(prompt):
    """What no engine should do; whatever returns goes on to its answer."""
    if "hang" in prompt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write("thinking")
        time.sleep(600)
    if "fork" in prompt and os.fork() == 0:  # it holds both outputs, and outlives its parent
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if "die" in prompt:
        write("half an ans")
        os.kill(os.getpid(), signal.SIGSEGV)
    if "fill stderr" in prompt:
        for _ in range(64):
            os.write(2, b"noise " * 10_000)
    if "fail" in prompt and "refuse" not in prompt:
        sys.stderr.write("loading\n\x1b[31mcannot\x00 allocate\x07 the KV cache\x1b[0m\r\n")
        sys.exit(3)


def complete(options, number, stops):
    given = parsed(options)
    prompt, limit = prompt_of(given), int(given[number])
    misbehave(prompt)
    if "--no-display-prompt" not in given:
        for at in range(0, len(prompt), 7):
            write(prompt[at : at + 7])
    if not answer(given, prompt, limit, stops) and options is TODAY:
        write(" [end of text]\n")
    write("\n\n")


def chat():
    """llama-cli: a banner, an echo, the answer, and last words; its errors stand where the answer would, and it ends well."""
    given = parsed(CHAT)
    with open(given["--system-prompt-file"], "rb") as file:
        system = file.read().decode("utf-8")
    system = system[:-1] if system.endswith("\n") else system
    raw = "role == 'system'" in given["--chat-template"] and "user" not in given["--chat-template"]
    prompt = system if raw and "--jinja" in given else CHATTED % (system, given["--prompt"])
    colour = (lambda code: f"\x1b[{code}m") if given.get("--color") == "on" else lambda code: ""
    write("\n\nLoading model... " + ("" if "--simple-io" in given else "|\b \b") + "\n\nllama.cpp\n\n/exit or Ctrl+C\n\n\n")
    write(f"{colour(1)}{colour(32)}\n> {given['--prompt']}\n{colour(0)}")
    misbehave(prompt)
    if "refuse" in prompt:
        write(f"{colour(1)}{colour(31)}Error: request (3000 tokens) exceeds the context\n{colour(0)}")
    else:
        answer(given, prompt, int(given["--predict"]), "--reverse-prompt")
        write("\n")
    write("" if "--no-show-timings" in given else f"{colour(35)}\n[ Prompt: 1.0 t/s | Generation: 1.0 t/s ]\n{colour(0)}")
    write("\n\nExiting...\n")


def answer(given, prompt, limit, stops):
    """Whether the limit or a stop ended it, not the model."""
    if "--json-schema" in given:
        properties = json.loads(given["--json-schema"])["properties"]
        write(json.dumps({name: rule.get("enum", [""])[0] for name, rule in properties.items()}))
        return True
    pieces = SAYS[max((name for name in SAYS if name in prompt), key=prompt.rfind, default="say hello")]
    said = b""
    for piece in b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)[:limit]:
        said += bytes([piece])
        write(bytes([piece]))
        time.sleep(0.001)  # a token takes its time
        if any(said.endswith(stop.encode()) for stop in given.get(stops, ())):
            return True
    return len(said) >= limit


def embed(options):
    prompt = prompt_of(parsed(options))
    misbehave(prompt)
    vector = [len(prompt) / 1000, 0.5, -0.25]
    write(json.dumps([vector]) if options is EMBED else " ".join(map(str, vector)) + "\n")


def tokenize(options):
    tokens = list(prompt_of(parsed(options)).encode())
    write(f"{tokens}\n" if options is TOKENIZE else "".join(f"{token:6d} -> '{chr(token)}'\n" for token in tokens))


PROGRAMS = {
    "llama-completion": lambda: complete(TODAY, "--predict", "--reverse-prompt"),
    "llama-cli": chat,
    "llama-embedding": lambda: embed(EMBED),
    "llama-tokenize": lambda: tokenize(TOKENIZE),
    "llama": lambda: complete(THEN, "-n", "-r"),
    "llama-embeddings": lambda: embed(PROMPT),
    "llama-tokens": lambda: tokenize(PROMPT),
}


def install(folder):
    """The programs in a folder for the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!{sys.executable} -IS\n{source}")
        program.chmod(0o755)
    return folder


if __name__ == "__main__":
    PROGRAMS[os.path.basename(sys.argv[0])]()
