//! List prices of AWS in USD, for us-east-1, as they were known in November 2026: nothing looks them up. Most other regions cost more, up to half as much again, so what is made of
//! them is told as an estimate.

/// A GetSnapshotBlock.
pub const GET_BLOCK: f64 = 0.003 / 1000.0;
/// A PutSnapshotBlock.
pub const PUT_BLOCK: f64 = 0.006 / 1000.0;
/// A ListSnapshotBlocks or ListChangedBlocks.
pub const LIST_BLOCKS: f64 = 0.0006 / 1000.0;
/// A gp3 volume, a GiB and month.
pub const GP3_GIB_MONTH: f64 = 0.08;
/// gp3 throughput beyond 125 MiB/s, a MiB/s and month.
pub const GP3_THROUGHPUT_MONTH: f64 = 0.04;
/// gp3 IOPS beyond 3000, one and month.
pub const GP3_IOPS_MONTH: f64 = 0.005;
/// What gp3 has without paying more, MiB/s.
pub const GP3_THROUGHPUT: u32 = 125;
/// What gp3 has without paying more.
pub const GP3_IOPS: u32 = 3000;
/// Data of a snapshot (standard tier), a GiB and month.
pub const SNAPSHOT_GIB_MONTH: f64 = 0.05;
/// A GiB from one region to another.
pub const BETWEEN_REGIONS_GIB: f64 = 0.02;
/// A GiB out to the internet: the first 10 TB of a month.
pub const INTERNET_GIB: f64 = 0.09;
/// Seconds of a month, as AWS counts.
pub const MONTH_S: f64 = 730.0 * 3600.0;
/// AWS charges volumes for a minute at least.
pub const CHARGED_MIN_S: f64 = 60.0;

/// A temporary gp3 volume for so long.
pub fn gp3(size_gib: u64, throughput: u32, iops: u32, seconds: f64) -> f64 {
    let month = size_gib as f64 * GP3_GIB_MONTH
        + f64::from(throughput.saturating_sub(GP3_THROUGHPUT)) * GP3_THROUGHPUT_MONTH
        + f64::from(iops.saturating_sub(GP3_IOPS)) * GP3_IOPS_MONTH;
    month * seconds.max(CHARGED_MIN_S) / MONTH_S
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_by_the_hour() {
        assert!((gp3(1024, 125, 3000, 3600.0) - 0.1122).abs() < 0.0001);
        assert!(gp3(1024, 500, 3000, 3600.0) > gp3(1024, 125, 3000, 3600.0));
        assert_eq!(gp3(10, 125, 3000, 1.0), gp3(10, 125, 3000, 60.0));
    }
}
