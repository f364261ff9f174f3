//! CIELab, as print shops store it: lightness as a byte, the other two signed.

/// From XYZ under D50, which Lab is measured under, to sRGB's linear red, green and blue.
const TO_RGB: [[f64; 3]; 3] = [
    [3.134_187_2, -1.617_209_0, -0.490_694_1],
    [-0.978_749_8, 1.916_130_1, 0.033_433_4],
    [0.071_969_6, -0.228_994_5, 1.405_410_3],
];
const WHITE: [f64; 3] = [0.9642, 1.0, 0.8249];

/// One pixel in sRGB; colours beyond it are cut.
pub(super) fn rgb(lightness: u8, a: u8, b: u8) -> [u8; 3] {
    let y = (f64::from(lightness) / 255.0 * 100.0 + 16.0) / 116.0;
    let cube = |value: f64| if value > 6.0 / 29.0 { value.powi(3) } else { 3.0 * (6.0 / 29.0f64).powi(2) * (value - 4.0 / 29.0) };
    let xyz = [y + f64::from(a as i8) / 500.0, y, y - f64::from(b as i8) / 200.0].map(cube);
    TO_RGB.map(|row| {
        let linear: f64 = row.iter().zip(xyz).zip(WHITE).map(|((factor, value), white)| factor * value * white).sum();
        let curved = if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        (curved.clamp(0.0, 1.0) * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside LittleCMS, by Pillow.
    #[test]
    fn known_colours() {
        let near = |lab: [u8; 3], right: [u8; 3]| rgb(lab[0], lab[1], lab[2]).iter().zip(right).all(|(a, b)| a.abs_diff(b) <= 3);
        assert!(near([255, 0, 0], [255, 255, 255]), "{:?}", rgb(255, 0, 0));
        assert!(near([0, 0, 0], [0, 0, 0]), "{:?}", rgb(0, 0, 0));
        assert!(near([128, 0, 0], [119, 119, 119]), "{:?}", rgb(128, 0, 0));
        assert!(near([136, 81, 70], [250, 2, 3]), "{:?}", rgb(136, 81, 70));
    }
}
