//! Colours that tell without hue: for the colour-blind, and in grey print.

/// Cividis (Nuñez, Anderton and Renslow, PLOS ONE 2018), at equal distances.
const CIVIDIS: [[u8; 3]; 10] = [
    [0x00, 0x22, 0x4e],
    [0x12, 0x35, 0x70],
    [0x3b, 0x49, 0x6c],
    [0x57, 0x5d, 0x6d],
    [0x70, 0x71, 0x73],
    [0x8a, 0x86, 0x78],
    [0xa5, 0x9c, 0x74],
    [0xc3, 0xb3, 0x69],
    [0xe1, 0xcc, 0x55],
    [0xfe, 0xe8, 0x38],
];

/// The fill of a share of 0 to 1, and the colour of text on it.
pub(crate) fn fill(share: f64) -> (String, &'static str) {
    let steps = (CIVIDIS.len() - 1) as f64;
    let at = share.clamp(0.0, 1.0) * steps;
    let below = (at.floor() as usize).min(CIVIDIS.len() - 2);
    let part = at - below as f64;
    let [r, g, b] = [0, 1, 2].map(|i| {
        let (from, to) = (CIVIDIS[below][i], CIVIDIS[below + 1][i]);
        f64::from(from) + part * (f64::from(to) - f64::from(from))
    });
    let linear = |c: f64| (c / 255.0).powf(2.2);
    let luminance = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    // Equal contrast with black and with white.
    let text = if luminance > 0.179 { "#111" } else { "#fff" };
    (
        format!("#{:02x}{:02x}{:02x}", r as u8, g as u8, b as u8),
        text,
    )
}

/// Policies whose colours are the same in every report.
const KNOWN: [&str; 6] = ["exact", "window", "kiv", "quest", "arkvale", "pq"];

/// Number of a policy's line colour (classes `s0` to `s5`) and marker; those
/// that are not known share them by the order in which they come.
pub(crate) fn series(policy: &str, order: usize) -> usize {
    KNOWN
        .iter()
        .position(|k| *k == policy)
        .unwrap_or(order % KNOWN.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_goes_from_dark_to_light() {
        assert_eq!(fill(0.0), ("#00224e".to_owned(), "#fff"));
        assert_eq!(fill(1.0), ("#fee838".to_owned(), "#111"));
        assert_eq!(fill(2.0), fill(1.0));
        assert_eq!(fill(0.5).0, "#7d7b75");
    }
}
