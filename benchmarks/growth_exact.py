from benchmarks.common import Benchmark
def measure_exact(benchmark: Benchmark) -> None: pass
def measure_orthogonal(benchmark: Benchmark) -> None: pass
