"""The child process of llama_server.py: serves the model on a free loopback port, says where, and stops when its stdin ends.

Its arguments: the model's file, its context, and, when a proxy starts it, its port; then it runs until it is stopped.
"""

import signal
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = {"tiny"}
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[3]) if len(sys.argv) > 3 else 0  # started by a proxy, it is told
params.n_parallel = 2
params.n_ctx = 2 * int(sys.argv[2])  # shared by the two slots
params.n_threads_http = 4
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.embedding = True
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.warmup = False
params.ui = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
if len(sys.argv) > 3:
    signal.pause()
sys.stdin.read()
