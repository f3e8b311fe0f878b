"""How fast one engine is: `run` starts a process for it, in an environment that has it, and this file is what runs there.

Arguments: the engine, the folder with the network, threads, seconds for each size. Prints one line of JSON. A new engine is
a function that loads it, and a line in ENGINES.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure, network

Floats = npt.NDArray[np.float32]
Engine = Callable[[Floats], Any]  # float32 [N, 28, 28] -> probabilities [N, 10]

OURS = "Descent's Predictor"
SIZES = (1, 64, 256)
_FEWEST_CALLS = 5
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(name: str, threads: int, seconds: float) -> measure.Run:
    environment, _ = ENGINES[name]
    python = measure.environment(environment) if environment else sys.executable
    command = [python, "bench/engine_time.py", name, str(network.folder()), str(threads), str(seconds)]
    return measure.run(command, env=os.environ | dict.fromkeys(_THREADS, str(threads)))


def main() -> None:
    name, folder, threads, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    engine = ENGINES[name][1](folder, threads)
    load_s = age_s()
    digits = np.load(folder / "digits.npy")
    engine(digits[:1])  # some make the rest now
    rss_mb = resident_mb()
    figures = {f"us_{size}": 1e6 * call_s(engine, digits[:size], seconds) for size in SIZES}
    probabilities = np.asarray(engine(digits)).tolist()
    print(json.dumps({**figures, "load_s": load_s, "rss_mb": rss_mb, "probabilities": probabilities}))


def call_s(engine: Engine, images: Floats, seconds: float) -> float:
    """Median of as many calls as there is time for, after a tenth of it to get warm."""
    times: list[float] = []
    for limit_s in (seconds / 10, seconds):
        times.clear()
        until = time.perf_counter() + limit_s
        while len(times) < _FEWEST_CALLS or time.perf_counter() < until:
            began = time.perf_counter()
            engine(images)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def age_s() -> float:
    """Of this process (Linux); the kernel counts in hundredths."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fused(folder: Path, threads: int) -> Engine:
    """As the API loads it: by the compiled layer, where there is one, with one thread whatever is asked."""
    from core.settings import Settings
    from core.training.fused import arrays
    from core.training.predictor import Predictor

    layer = arrays.load(Settings().cache_dir / "kernels")
    return Predictor.from_safetensors((folder / "model.safetensors").read_bytes(), layer).probabilities


def plain(folder: Path, threads: int) -> Engine:
    """Threads as the environment told NumPy's BLAS."""
    from core.training.predictor import Predictor

    return Predictor.from_safetensors((folder / "model.safetensors").read_bytes()).probabilities


def onnxruntime(folder: Path, threads: int) -> Engine:
    from bench.rivals.onnx_network import session as new_session

    session = new_session(folder, threads)
    return lambda images: session.run(None, {"images": images})[0]


def torch(folder: Path, threads: int) -> Engine:
    import torch

    from bench.rivals.torch_network import network

    torch.set_num_threads(threads)
    module = network(folder / "model.npz")

    def probabilities(images: Floats) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images)[:, None]).numpy()

    return probabilities


def paddle_eager(folder: Path, threads: int) -> Engine:
    from core.training import runtime

    runtime.prepare(threads)
    import paddle

    from core.training.network import new_network

    network = new_network(seed=0)
    network.set_state_dict(dict(np.load(folder / "model.npz")))
    network.eval()

    def probabilities(images: Floats) -> Any:
        with paddle.no_grad():
            return paddle.nn.functional.softmax(network(paddle.to_tensor(images[:, None])), axis=1).numpy()

    return probabilities


def paddle_inference(folder: Path, threads: int, *, onednn: bool = False) -> Engine:
    from core.training import runtime

    runtime.prepare(threads)
    from paddle import inference

    config = inference.Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()  # it is the default
    predictor = inference.create_predictor(config)
    given = predictor.get_input_handle(predictor.get_input_names()[0])
    answer = predictor.get_output_handle(predictor.get_output_names()[0])

    def probabilities(images: Floats) -> Any:
        given.copy_from_cpu(images[:, None])
        predictor.run()
        return answer.copy_to_cpu()

    return probabilities


def paddle_onednn(folder: Path, threads: int) -> Engine:
    return paddle_inference(folder, threads, onednn=True)


ENGINES: dict[str, tuple[str, Callable[[Path, int], Engine]]] = {  # -> its environment ("" is ours), how it is loaded
    "Paddle eager": ("", paddle_eager),
    "paddle.inference": ("", paddle_inference),
    "paddle.inference, oneDNN": ("", paddle_onednn),
    "ONNX Runtime": ("bare", onnxruntime),
    "PyTorch eager": ("torch", torch),
    "NumPy": ("", plain),
    OURS: ("", fused),
}

if __name__ == "__main__":
    main()
