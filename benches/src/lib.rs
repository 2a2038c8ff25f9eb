//! Benchmarks of penstock. `cargo bench -p penstock-benches` measures the steps; `src/bin/` has programs that measure a device, a file or the
//! whole pipeline; `make-images` and `rivals` compare with other programs. What `roofline` is made of stands here.

pub mod backup_cost;
pub mod meter;
pub mod pipeline;
pub mod place;
pub mod restore_cost;
pub mod sample;
pub mod table;
pub mod workload;

/// What the measuring programs return: they print the error and end.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
