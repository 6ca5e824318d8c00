//! The figures and days of a bill, read exactly.
//!
//! Must not know whose they are. Invariant: no float, and no digit is lost: dollars keep eighteen places, and what is
//! finer is rounded up.

use tuition_ledger::Day;

/// Places that dollars are kept with: units of 10⁻¹⁸ dollars.
pub(super) const PLACES: u32 = 18;
/// Such units in one nano-dollar.
pub(super) const UNITS_A_NANO: u128 = 10_u128.pow(PLACES - 9);
/// Digits in front of the point: a thousand million million dollars, more than any bill.
const WHOLE_DIGITS_MAX: u32 = 15;
/// The largest power of ten in `1.5e-05`.
const POWER_MAX: i32 = 40;

/// A number of tokens or requests: digits, and nothing but zeros behind a point (`10.0`).
pub(super) fn count(text: &str) -> Result<u128, String> {
    let whole = match text.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|byte| byte == b'0') => whole,
        _ => text,
    };
    if whole.starts_with('-') && digits(whole.trim_start_matches('-')) {
        return Err(format!("`{text}` is negative"));
    }
    let number = whole.parse::<u64>().ok().filter(|_| digits(whole));
    number.map(u128::from).ok_or_else(|| format!("`{}` is no whole number", text.escape_debug()))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Dollars in units of 10⁻¹⁸, as decimals (`0.30`) or with a power of ten (`1.5e-05`); what is finer is rounded up.
pub(super) fn dollars(text: &str) -> Result<u128, String> {
    let wrong = || format!("`{}` is no decimal amount of dollars", text.escape_debug());
    let (mantissa, power) = match text.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, power.parse::<i32>().map_err(|_| wrong())?),
        None => (text, 0),
    };
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    if !digits(&all) || power.abs() > POWER_MAX {
        return Err(wrong());
    }
    if all.bytes().all(|byte| byte == b'0') {
        return Ok(0);
    }
    if negative {
        return Err(format!("`{text}` is negative"));
    }
    // The value is `all` times ten to the power of `shift`, in units.
    let shift = i64::from(power) + i64::from(PLACES) - i64::try_from(fraction.len()).map_err(|_| wrong())?;
    let significant = all.trim_start_matches('0');
    let length = i64::try_from(significant.len()).map_err(|_| wrong())? + shift;
    if length > i64::from(WHOLE_DIGITS_MAX + PLACES) {
        return Err(format!("`{text}` is more than a bill can be"));
    }
    let Ok(length) = usize::try_from(length) else { return Ok(1) };
    let kept = &significant[..length.min(significant.len())];
    let units = format!("0{kept:0<length$}").parse::<u128>().map_err(|_| wrong())?;
    let finer = significant[kept.len()..].bytes().any(|byte| byte != b'0');
    Ok(units + u128::from(finer))
}

/// A day: `2026-11-01`, a moment in UTC, or seconds since 1970.
pub(super) fn day(text: &str) -> Result<Day, String> {
    const DAY_S: u64 = 86_400;
    let wrong =
        || format!("`{}` is no day (2026-11-01), no moment in UTC and no Unix time", text.escape_debug());
    if digits(text.strip_suffix(".0").unwrap_or(text)) {
        let seconds = text.strip_suffix(".0").unwrap_or(text).parse::<u64>().map_err(|_| wrong())?;
        return u32::try_from(seconds / DAY_S).map(Day).map_err(|_| wrong());
    }
    let Some((day, time)) = text.split_once(['T', ' ']) else { return text.parse().map_err(|_| wrong()) };
    let in_utc = ["Z", "+00:00", "+0000", " UTC"].iter().find_map(|zone| time.strip_suffix(zone));
    let clock = in_utc.unwrap_or(time);
    if clock.is_empty() || !clock.bytes().all(|byte| byte.is_ascii_digit() || byte == b':' || byte == b'.') {
        return Err(wrong());
    }
    day.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_exactly() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("10.0", Some(10)),
            ("18446744073709551615", Some(u128::from(u64::MAX))),
            ("10.5", None),
            ("1e3", None),
            ("1,000", None),
            ("+5", None),
            ("-5", None),
            (".0", None),
            ("many", None),
        ] {
            assert_eq!(count(text).ok(), expected, "{text}");
        }
        assert_eq!(count("-5.0"), Err("`-5.0` is negative".to_owned()));
        let unit = 10_u128.pow(18);
        for (text, expected) in [
            ("0.30", Some(3 * unit / 10)),
            ("12", Some(12 * unit)),
            (".5", Some(unit / 2)),
            ("0.8958740000000000", Some(895_874 * unit / 1_000_000)),
            ("1.5e-05", Some(15 * unit / 1_000_000)),
            ("1E2", Some(100 * unit)),
            ("0.000000000000000001", Some(1)),
            ("0.0000000000000000011", Some(2)),
            ("1e-30", Some(1)),
            ("0.00", Some(0)),
            ("-0.0", Some(0)),
            ("999999999999999.999999999999999999", Some(10_u128.pow(33) - 1)),
            ("1000000000000000", None),
            ("-0.01", None),
            ("$5", None),
            ("1.2.3", None),
            ("1e999", None),
            (".", None),
            ("nan", None),
        ] {
            assert_eq!(dollars(text).ok(), expected, "{text}");
        }
        assert_eq!(dollars("-0.01"), Err("`-0.01` is negative".to_owned()));
    }

    #[test]
    fn days_are_read_in_utc_alone() {
        let expected = "2025-10-05".parse::<Day>().ok();
        for text in [
            "2025-10-05",
            "1759622400",
            "1759622400.0",
            "2025-10-05T00:00:00+00:00",
            "2025-10-05T23:59:59.999Z",
            "2025-10-05 13:00:00",
            "2025-10-05 13:00:00 UTC",
        ] {
            assert_eq!(day(text).ok(), expected, "{text}");
        }
        for text in ["", "2025-10-05T00:00:00+02:00", "05.10.2025", "2025-10-05T", "yesterday", "2025-10-32"]
        {
            assert!(day(text).is_err(), "{text}");
        }
    }
}
