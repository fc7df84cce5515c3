"""One file per paper figure or table, and the benchmarks: the places where the library is composed."""
