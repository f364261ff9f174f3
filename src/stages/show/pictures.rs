//! Pictures in terminals that can show them: kitty's protocol, iTerm2's, and sixels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use serde_json::Value;

use super::View;
use super::layout::text;
use crate::dataset::listing::relative_path;
use crate::image::{Limits, Thumbnail, load};

/// How a terminal takes pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Kitty,
    Iterm,
    Sixel,
}

/// Pixels of a picture's longer edge.
const EDGE: u32 = 240;
/// Columns whose cells name an image's file.
const PATHS: [&str; 3] = ["image_path", "file_name", "filename"];

impl Protocol {
    /// What this terminal is known to take, by the variables that it sets.
    pub fn of_terminal(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let (term, program) = (variable("TERM").unwrap_or_default(), variable("TERM_PROGRAM").unwrap_or_default());
        let has = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        match () {
            // Between us and the terminal there is one that does not hand pictures on.
            () if has("TMUX") || term.starts_with("screen") => None,
            () if has("KITTY_WINDOW_ID") || term.contains("kitty") || term.contains("ghostty") || program == "ghostty" => {
                Some(Self::Kitty)
            }
            () if matches!(program.as_str(), "iTerm.app" | "WezTerm" | "vscode" | "mintty") || has("KONSOLE_VERSION") => {
                Some(Self::Iterm)
            }
            () if term.contains("sixel") || ["foot", "mlterm", "contour", "yaft"].iter().any(|name| term.starts_with(name)) => {
                Some(Self::Sixel)
            }
            () => None,
        }
    }

    /// The bytes that make a terminal show a picture.
    fn escape(self, picture: &RgbImage) -> Vec<u8> {
        match self {
            Self::Kitty => kitty(picture),
            Self::Iterm => {
                let jpeg = Thumbnail { edge: EDGE, quality: 85, max_bytes: usize::MAX }.of(picture);
                format!("\x1b]1337;File=inline=1;size={}:{}\x07", jpeg.len(), STANDARD.encode(jpeg)).into_bytes()
            }
            Self::Sixel => sixel(picture),
        }
    }
}

impl View {
    /// Each row as its picture, its caption and the rest; pictures are looked for in `folders`.
    ///
    /// # Errors
    /// No column names image files.
    pub fn to_pictures(&self, protocol: Protocol, folders: &[PathBuf]) -> Result<Vec<u8>> {
        let at = PATHS.iter().find_map(|name| self.columns.iter().position(|column| column == name));
        let at = at.with_context(|| format!("pictures need a column of files ({})", PATHS.join(", ")))?;
        let mut out = Vec::new();
        for row in &self.rows {
            let name = row[at].as_str().unwrap_or_default();
            match small(name, folders) {
                Ok(picture) => out.extend(protocol.escape(&picture)),
                Err(fault) => out.extend(format!("[{fault}]").into_bytes()),
            }
            out.extend(format!("\n{}\n\n", words(&self.columns, row)).into_bytes());
        }
        out.extend(format!("{}\n", self.footer(&[]).trim_start()).into_bytes());
        Ok(out)
    }
}

/// The caption, and below it the other cells with their names.
fn words(columns: &[String], row: &[Value]) -> String {
    let is_caption = |name: &str| name == "caption";
    let caption: Vec<String> =
        columns.iter().zip(row).filter(|(name, _)| is_caption(name)).map(|(_, value)| text(value)).collect();
    let others: Vec<String> = columns
        .iter()
        .zip(row)
        .filter(|(name, value)| !is_caption(name) && *name != "sha256" && !value.is_null())
        .map(|(name, value)| format!("{name} {}", text(value)))
        .collect();
    [caption.join(" "), others.join("  ")].join("\n")
}

fn small(name: &str, folders: &[PathBuf]) -> Result<RgbImage, String> {
    let relative = relative_path(name);
    let path = folders.iter().map(|folder| folder.join(&relative)).find(|path| path.is_file());
    let loaded = load(&path.ok_or_else(|| format!("no file {}", text(&Value::String(name.into()))))?, &Limits::default(), true);
    let jpeg =
        Thumbnail { edge: EDGE, quality: 95, max_bytes: usize::MAX }.of(&loaded.map_err(|failure| failure.message)?.pixels);
    Ok(image::load_from_memory(&jpeg).map_err(|error| error.to_string())?.into_rgb8())
}

/// PNG in pieces of base64.
fn kitty(picture: &RgbImage) -> Vec<u8> {
    const PIECE: usize = 4096;
    let mut png = Vec::new();
    let written = PngEncoder::new(&mut png).write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8);
    if written.is_err() {
        return Vec::new();
    }
    let encoded = STANDARD.encode(png).into_bytes();
    let mut out = Vec::new();
    let pieces = encoded.chunks(PIECE);
    let last = pieces.len().saturating_sub(1);
    for (at, piece) in pieces.enumerate() {
        let head = if at == 0 { "f=100,a=T," } else { "" };
        out.extend(format!("\x1b_G{head}m={};", u8::from(at < last)).into_bytes());
        out.extend(piece);
        out.extend(b"\x1b\\");
    }
    out
}

/// Steps of each colour: 216 colours.
const STEPS: u32 = 6;

/// Sixels: bands of six rows, and in a band a line for each colour. Colours are dithered, so that skies have no edges.
fn sixel(picture: &RgbImage) -> Vec<u8> {
    const BAYER: [[u32; 4]; 4] = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]];
    let (width, height) = picture.dimensions();
    let colour = |x: u32, y: u32| {
        let shift = BAYER[(y % 4) as usize][(x % 4) as usize];
        let step = |value: u8| ((u32::from(value) * (STEPS - 1) * 16 + shift * 255 + 127) / (255 * 16)).min(STEPS - 1);
        let [r, g, b] = picture.get_pixel(x, y).0.map(step);
        (r * STEPS + g) * STEPS + b
    };
    let mut out = format!("\x1bPq\"1;1;{width};{height}");
    let percent = |step: u32| step * 100 / (STEPS - 1);
    for number in 0..STEPS.pow(3) {
        let (r, g, b) = (number / STEPS / STEPS, number / STEPS % STEPS, number % STEPS);
        out += &format!("#{number};2;{};{};{}", percent(r), percent(g), percent(b));
    }
    for top in (0..height).step_by(6) {
        let rows = top..(top + 6).min(height);
        let mut lines: std::collections::BTreeMap<u32, Vec<u8>> = std::collections::BTreeMap::new();
        for x in 0..width {
            for y in rows.clone() {
                lines.entry(colour(x, y)).or_insert_with(|| vec![0; width as usize])[x as usize] |= 1 << (y - top);
            }
        }
        for (at, (number, line)) in lines.iter().enumerate() {
            out += if at > 0 { "$" } else { "" };
            out += &format!("#{number}");
            for run in line.chunk_by(|a, b| a == b) {
                let letter = char::from(63 + run[0]);
                out += &if run.len() > 3 { format!("!{}{letter}", run.len()) } else { letter.to_string().repeat(run.len()) };
            }
        }
        out.push('-');
    }
    (out + "\x1b\\").into_bytes()
}

/// The folders to look in: those given, or the table's own.
pub fn folders(given: &[PathBuf], table: &Path) -> Vec<PathBuf> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let beside = if table.is_dir() { Some(table) } else { table.parent() };
    vec![beside.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terminals_are_known_by_what_they_set() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            Protocol::of_terminal(&|name| set.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
        };
        assert_eq!(of(&[("TERM", "xterm-kitty")]), Some(Protocol::Kitty));
        assert_eq!(of(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Some(Protocol::Iterm));
        assert_eq!(of(&[("TERM", "foot")]), Some(Protocol::Sixel));
        assert_eq!(of(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/x")]), None);
        assert_eq!(of(&[("TERM", "xterm-256color")]), None);
    }

    #[test]
    fn sixels_are_the_picture() {
        // Colours of the palette, so that nothing is dithered away.
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]];
        let picture = RgbImage::from_fn(20, 13, |x, y| image::Rgb(colours[((x / 7 + y / 5) % 3) as usize]));
        let text = String::from_utf8(sixel(&picture)).unwrap();
        let body = text.strip_prefix("\x1bPq\"1;1;20;13").unwrap().strip_suffix("\x1b\\").unwrap();
        let start = body.find("#215;2;100;100;100").unwrap() + "#215;2;100;100;100".len();
        let mut drawn = RgbImage::new(20, 13);
        for (band, line) in body[start..].trim_end_matches('-').split('-').enumerate() {
            for colour in line.split('$') {
                let digits: String = colour[1..].chars().take_while(char::is_ascii_digit).collect();
                let number: u32 = digits.parse().unwrap();
                let rgb = [number / 36, number / 6 % 6, number % 6].map(|step| (step * 51) as u8);
                let (mut x, mut count) = (0, String::new());
                for letter in colour[1 + digits.len()..].chars() {
                    match letter {
                        '!' => {}
                        digit if digit.is_ascii_digit() => count.push(digit),
                        letter => {
                            for _ in 0..count.parse().unwrap_or(1) {
                                let bits = letter as u32 - 63;
                                (0..6)
                                    .filter(|bit| bits >> bit & 1 == 1)
                                    .for_each(|bit| drawn.put_pixel(x, band as u32 * 6 + bit, image::Rgb(rgb)));
                                x += 1;
                            }
                            count.clear();
                        }
                    }
                }
            }
        }
        assert!(drawn == picture);
    }

    #[test]
    fn kittys_pieces_are_a_png() {
        let picture = RgbImage::from_fn(100, 80, |x, y| image::Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7) as u8]));
        let text = String::from_utf8(kitty(&picture)).unwrap();
        let pieces: Vec<&str> = text.split("\x1b_G").skip(1).map(|piece| piece.strip_suffix("\x1b\\").unwrap()).collect();
        assert!(pieces.len() > 1 && pieces[0].starts_with("f=100,a=T,m=1;") && pieces.last().unwrap().starts_with("m=0;"));
        let encoded: String = pieces.iter().map(|piece| piece.split_once(';').unwrap().1).collect();
        let png = STANDARD.decode(encoded).unwrap();
        assert!(image::load_from_memory(&png).unwrap().into_rgb8() == picture);
    }

    #[test]
    fn a_row_is_its_picture_and_its_words() {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::new(8, 8).save(folder.path().join("a.png")).unwrap();
        let columns = ["caption", "image_path", "logprob"].map(String::from).into();
        let rows = vec![vec![json!("狗"), json!("a.png"), json!(-1.5)], vec![json!("猫"), json!("b\u{1b}.png"), json!(null)]];
        let view = View { columns, rows, total: 2, matched: 2, values: None, left_out: vec![] };
        let out = String::from_utf8(view.to_pictures(Protocol::Sixel, &[folder.path().into()]).unwrap()).unwrap();
        assert!(out.starts_with("\x1bPq") && out.contains("狗\nimage_path a.png  logprob -1.5\n"), "{out:?}");
        assert!(out.contains("[no file") && out.ends_with("2 shown of 2 rows\n"), "{out:?}");
        assert!(View { columns: vec!["a".into()], ..view }.to_pictures(Protocol::Kitty, &[]).is_err());
    }
}
