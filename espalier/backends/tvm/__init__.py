"""The TVM backend: graphs to Relax and TIR, compiled for CPUs."""
