//! Benchmarks of penstock. `cargo bench -p penstock-benches` measures the steps; `src/bin/` has programs that measure a device or a file;
//! `make-images` and `rivals` compare with other programs.
