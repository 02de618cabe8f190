//! Numbers as people read them.

/// Tokens: `16 K`, `1 M`, `1,500`.
pub(crate) fn tokens(n: u64) -> String {
    const K: u64 = 1024;
    match n {
        0 => "0".to_owned(),
        n if n % (K * K) == 0 => format!("{} M", n / (K * K)),
        n if n % K == 0 => format!("{} K", n / K),
        n => grouped(n),
    }
}

/// Thousands apart: `131,072`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share in percent. Only what is all is `100`, only nothing is `0`.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let whole = percent.round();
    if (percent - whole).abs() < 1e-6 {
        return format!("{whole:.0}");
    }
    format!("{:.1}", percent.clamp(0.1, 99.9))
}

/// A small positive number with three significant digits.
pub(crate) fn small(x: f64) -> String {
    if x == 0.0 {
        "0".to_owned()
    } else if x.abs() < 1e-3 {
        format!("{x:.2e}")
    } else {
        let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 5);
        format!("{x:.*}", digits as usize)
    }
}

/// 95 % Wilson score interval of a rate.
pub(crate) fn wilson(passed: u64, total: u64) -> (f64, f64) {
    let (n, z) = (total as f64, 1.96);
    let p = passed as f64 / n;
    let middle = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    let bound = |x: f64| (x / scale).clamp(0.0, 1.0);
    (bound(middle - spread), bound(middle + spread))
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [4096, 1 << 20, 1500, 131_073].map(tokens),
            ["4 K", "1 M", "1,500", "131,073"]
        );
        assert_eq!(
            [0.0, 0.5, 1.0, 0.999_99, 1e-6, 1.0 / 3.0].map(percent),
            ["0", "50", "100", "99.9", "0.1", "33.3"]
        );
        assert_eq!(
            [0.0, 2.96e-6, 0.012_34, 1.5, 123.4].map(small),
            ["0", "2.96e-6", "0.0123", "1.50", "123"]
        );
        let (low, high) = wilson(11, 11);
        assert!((low - 0.7412).abs() < 1e-3 && high > 0.999, "{low} {high}");
        let items = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(list(&items), "a, b and c");
    }
}
