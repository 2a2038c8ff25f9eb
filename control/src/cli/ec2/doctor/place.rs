//! Where this program runs, and what time it is there.

use crate::aws::clients::Proxy;

use super::super::super::check::Check;

/// AWS refuses signatures that are further off.
const CLOCK_FAIL_S: u64 = 300;
const CLOCK_WARN_S: u64 = 30;

/// The instance this is, by its metadata; `by_firmware`: the firmware says that it is one.
pub fn this_instance(proxy: Option<&Proxy>, region: &str, by_firmware: bool) -> Check {
    const NAME: &str = "this instance";
    match proxy {
        Some(proxy) if proxy.region == region => {
            Check::ok(NAME, format!("{} in {}, by IMDSv2", proxy.instance, proxy.zone))
        }
        Some(proxy) => Check::warn(
            NAME,
            format!("{} in {}, not in {region}", proxy.instance, proxy.zone),
            "volumes of another region cannot be attached: only --read direct works from here",
        ),
        None if by_firmware => Check::warn(
            NAME,
            "an EC2 instance whose metadata does not answer",
            "volumes cannot be attached, only --read direct works: switch the metadata service on; in a container its hop limit must be 2 (modify-instance-metadata-options --http-put-response-hop-limit 2)",
        ),
        None => Check::warn(
            NAME,
            "not an EC2 instance: no metadata service answers",
            "volumes cannot be attached: only --read direct works from here",
        ),
    }
}

/// The clock of this machine against AWS's.
pub fn clock(ahead_s: Option<i64>) -> Check {
    const NAME: &str = "clock";
    const ADVICE: &str = "set it (chrony with the server 169.254.169.123, `timedatectl set-ntp true`)";
    let Some(ahead_s) = ahead_s else {
        return Check::warn(NAME, "not checked: AWS did not answer", "see above");
    };
    let off_s = ahead_s.unsigned_abs();
    let side = if ahead_s > 0 { "behind" } else { "ahead of" };
    let found = format!("{off_s} s {side} AWS's");
    match off_s {
        0..=1 => Check::ok(NAME, "as AWS's"),
        2..=CLOCK_WARN_S => Check::ok(NAME, found),
        off if off <= CLOCK_FAIL_S => {
            Check::warn(NAME, found, format!("from 5 minutes on AWS refuses signatures: {ADVICE}"))
        }
        _ => Check::fail(NAME, found, format!("AWS refuses signatures from 5 minutes on: {ADVICE}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Status;

    #[test]
    fn clocks() {
        for (ahead_s, status) in [
            (0, Status::Ok),
            (-30, Status::Ok),
            (31, Status::Warn),
            (-300, Status::Warn),
            (301, Status::Fail),
        ] {
            assert_eq!(clock(Some(ahead_s)).status, status, "{ahead_s}");
        }
        assert!(clock(Some(400)).found.contains("behind") && clock(Some(i64::MIN)).found.contains("ahead"));
        assert_eq!(clock(None).status, Status::Warn);
    }
}
