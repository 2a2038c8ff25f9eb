//! Sizes, rates and durations as people read and write them. Sizes are IEC only: `64KiB`, `1.5 GiB`.

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Reads `4096`, `64KiB`, `64K`, `1.5 GiB`. Decimal units (`MB`) are refused: they are too often meant as the other kind.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor = unit_factor(suffix.trim())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let bad = || format!("{text:?} is not a size: write it like 4096, 64KiB or 1.5GiB");
    if whole.is_empty() || fraction.len() > 9 || (fraction.is_empty() && number.contains('.')) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part = match fraction {
        "" => 0,
        digits => {
            let value: u128 = digits.parse().map_err(|_| bad())?;
            (value * u128::from(factor) / 10u128.pow(digits.len() as u32)) as u64
        }
    };
    whole
        .checked_mul(factor)
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or_else(|| format!("{text:?} is more than 16 EiB"))
}

/// Bytes a second: a size, with or without `/s`. At least 1 KiB, below which no request ends.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.trim().strip_suffix("/s").unwrap_or(text);
    match parse_size(size)? {
        bytes_per_s if bytes_per_s >= 1 << 10 => Ok(bytes_per_s),
        _ => Err(format!("{text:?} is too slow: at least 1KiB a second is accepted")),
    }
}

/// As [`parse_size`], for sizes that have to fit 32 bits (chunks, packs).
pub fn parse_size_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?)
        .map_err(|_| format!("{text:?} is out of range: less than 4GiB is accepted"))
}

fn unit_factor(suffix: &str) -> Result<u64, String> {
    let lower = suffix.to_ascii_lowercase();
    if lower.is_empty() || lower == "b" {
        return Ok(1);
    }
    for (power, unit) in UNITS.iter().enumerate().skip(1) {
        let unit = unit.to_ascii_lowercase();
        if lower == unit || lower == unit[..1] {
            return Ok(1 << (10 * power));
        }
        if lower.len() == 2 && lower.ends_with('b') && lower[..1] == unit[..1] {
            return Err(format!("{suffix}: decimal units are not accepted, write {}", UNITS[power]));
        }
    }
    Err(format!("unknown unit {suffix:?}: B, KiB, MiB, GiB, TiB and PiB are accepted"))
}

/// Reads a share: `5%`, or `0.05`. More than nothing and at most everything.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|value| value / 100.0),
        None => text.parse::<f64>(),
    };
    match share {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is not a share: write it like 5%, more than 0% and at most 100%")),
    }
}

/// Reads a time span: `24h`, `90m`, `0s`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write it like 24h, 90m or 0s");
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    std::time::Duration::try_from(parsed).map_err(|_| wrong())
}

/// `512 B`, `64 KiB`, `1.5 GiB`: three significant digits.
pub fn size(bytes: u64) -> String {
    scaled(bytes as f64)
}

/// `4 MiB`, `1280 KiB`, `17 B`: the number itself, in the largest unit that it is a whole number of.
pub fn exact(bytes: u64) -> String {
    let power = if bytes == 0 { 0 } else { (bytes.trailing_zeros() as usize / 10).min(UNITS.len() - 1) };
    format!("{} {}", bytes >> (10 * power), UNITS[power])
}

/// Bytes in `ms` milliseconds as `1.25 GiB/s`.
pub fn rate(bytes: u64, ms: u64) -> String {
    format!("{}/s", scaled(per_second(bytes, ms)))
}

/// Bytes per second as `1.25 GiB/s`.
pub fn rate_of(bytes_per_s: f64) -> String {
    format!("{}/s", scaled(bytes_per_s))
}

/// Bytes a second; a run of less than a millisecond counts as one.
pub fn per_second(bytes: u64, ms: u64) -> f64 {
    bytes as f64 * 1000.0 / ms.max(1) as f64
}

fn scaled(mut value: f64) -> String {
    let mut power = 0;
    // 1023.5 would be printed as 1024 of the smaller unit.
    while value >= 1023.5 && power + 1 < UNITS.len() {
        value /= 1024.0;
        power += 1;
    }
    let decimals = match value {
        _ if power == 0 || value >= 99.95 => 0,
        _ if value >= 9.995 => 1,
        _ => 2,
    };
    let mut number = format!("{value:.decimals$}");
    if number.contains('.') {
        number.truncate(number.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{number} {}", UNITS[power])
}

/// `850 ms`, `12.3 s`, `2 min 05 s`, `1 h 02 min`.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", s, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// `12 s`, `2 min 05 s`: for estimates, which have no tenths.
pub fn seconds(s: u64) -> String {
    if s < 60 { format!("{s} s") } else { duration(s * 1000) }
}

/// `31,204`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `file`, `files`: the noun for `number` things.
pub fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `3.4` of `3.4 : 1`; `None` where there is nothing to divide by.
pub fn ratio(whole: u64, part: u64) -> Option<String> {
    (part > 0).then(|| format!("{:.1} : 1", whole as f64 / part as f64))
}

/// `2.1 %`.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "0 %".into(),
        _ => {
            let percent = part as f64 * 100.0 / whole as f64;
            if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        for (text, bytes_per_s) in [("10MiB", 10 << 20), ("256 KiB/s", 256 << 10), ("4096", 4096)] {
            assert_eq!(parse_rate(text), Ok(bytes_per_s), "{text}");
        }
        for wrong in ["", "0", "10", "10MB/s", "1MiB/h", "fast"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64KiB", 65_536),
            ("64k", 65_536),
            ("64 kib", 65_536),
            (" 1.5 GiB ", 3 << 29),
            ("0.5K", 512),
            ("16383PiB", 16_383 << 50),
            ("1.0625MiB", (1 << 20) + (1 << 16)),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_the_reason() {
        for text in [
            "",
            "KiB",
            "1..5K",
            "1.",
            "-1",
            "64KiBs",
            "16EiB",
            "99999999999999999999",
            "1e3",
            "1.0000000001K",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("64MB").unwrap_err().contains("MiB"));
        assert!(parse_size("64Q").unwrap_err().contains("unknown unit"));
        assert!(parse_size_u32("4GiB").is_err());
        assert_eq!(parse_size_u32("32MiB"), Ok(32 << 20));
    }

    #[test]
    fn sizes_are_printed_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (65_536, "64 KiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 20) - 1, "1 MiB"),
            (1000 << 10, "1000 KiB"),
            (12_345_678, "11.8 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn exact_sizes_lose_nothing() {
        for (bytes, text) in
            [(0, "0 B"), (17, "17 B"), (1 << 20, "1 MiB"), (1_310_720, "1280 KiB"), (12 << 40, "12 TiB")]
        {
            assert_eq!(exact(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn printed_sizes_read_back() {
        for bytes in [0, 1, 512, 4096, 65_536, 1 << 20, 3 << 29, 5 << 40] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn rates_and_durations() {
        assert_eq!(rate(5 << 30, 4000), "1.25 GiB/s");
        assert_eq!(rate(0, 0), "0 B/s");
        assert_eq!(duration(850), "850 ms");
        assert_eq!(duration(12_340), "12.3 s");
        assert_eq!(duration(125_000), "2 min 05 s");
        assert_eq!(duration(3_725_000), "1 h 02 min");
        assert_eq!(seconds(7), "7 s");
        assert_eq!(seconds(125), "2 min 05 s");
    }

    #[test]
    fn shares_counts_and_ratios() {
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("100 %"), Ok(1.0));
        assert_eq!(parse_share("0.25"), Ok(0.25));
        for text in ["0%", "101%", "5", "x%", "NaN", "-1%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(31_204), "31,204");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(plural(1, "volume"), "1 volume");
        assert_eq!(plural(2, "volume"), "2 volumes");
        assert_eq!(ratio(34, 10).as_deref(), Some("3.4 : 1"));
        assert_eq!(ratio(34, 0), None);
        assert_eq!(percent(21, 1000), "2.1 %");
        assert_eq!(percent(1, 2), "50 %");
    }
}
