//! Pictures as the world writes them: what Pillow reads has Pillow's pixels, and what is not read is told by its name.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clipcap::files::ContentHash;
use clipcap::image::{Failure, Limits, Reason, decode, header};
use image::{ImageFormat, RgbImage};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats")
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn decoded(bytes: &[u8]) -> Result<RgbImage, Failure> {
    decode(bytes, &Limits::default(), true)
}

/// Upright width and height, and a hash of Pillow's RGB.
const PILLOWS: [(&str, (u32, u32), &str); 40] = [
    ("bmp_offset_0.bmp", (32, 32), "2a6949d9d1d33631"),
    ("bmp_os2_v2.bmp", (32, 32), "2a6949d9d1d33631"),
    ("bmp_rle_transparent.bmp", (127, 64), "c37e483b96ea7535"),
    ("exif_long_6.png", (24, 40), "9d8236bba57a6b1b"),
    ("exif_prefixed_6.png", (24, 40), "9d8236bba57a6b1b"),
    ("exif_prefixed_6.webp", (24, 40), "9d8236bba57a6b1b"),
    ("gif_frame_beyond_screen.gif", (32, 32), "94f112d46fa24ed9"),
    ("gif_frame_smaller.gif", (32, 32), "8f00cf4529560dc7"),
    ("gif_no_palette.gif", (32, 32), "f0bb99178913a145"),
    ("gif_no_trailer.gif", (32, 32), "94f112d46fa24ed9"),
    ("gif_screen_0x0.gif", (32, 32), "94f112d46fa24ed9"),
    ("gif_second_frame_cut.gif", (32, 32), "94f112d46fa24ed9"),
    ("png_no_iend.png", (32, 32), "2a6949d9d1d33631"),
    ("raw_profile_text_6.png", (24, 40), "9d8236bba57a6b1b"),
    ("raw_profile_ztxt_6.png", (24, 40), "9d8236bba57a6b1b"),
    ("tiff_cmyk_planar_le.tif", (37, 29), "ebd77d6f9157b9f4"),
    ("tiff_fax_group3_n_o0_p0_f1.tif", (113, 61), "b9d2eb75c592a73b"),
    ("tiff_fax_group3_n_o1_p1_f2.tif", (113, 61), "b9d2eb75c592a73b"),
    ("tiff_fax_group3_n_o5_p0_f1.tif", (113, 61), "b9d2eb75c592a73b"),
    ("tiff_fax_group4_n_o0_p1_f1.tif", (113, 61), "b9d2eb75c592a73b"),
    ("tiff_fax_tiff_ccitt_n_o0_p0_f2.tif", (113, 61), "b9d2eb75c592a73b"),
    ("tiff_fillorder2.tif", (32, 32), "eadc8cf719d41e5c"),
    ("tiff_fillorder2_group4.tif", (32, 32), "0f13204b59af7dfc"),
    ("tiff_fillorder2_tiff_lzw.tif", (32, 32), "0f13204b59af7dfc"),
    ("tiff_float.tif", (32, 32), "333e8ddcae57524b"),
    ("tiff_float32_pred3_le.tif", (37, 29), "f332998cb9fa1750"),
    ("tiff_grey2_p0_f2_be.tif", (37, 29), "fa56a20441ed4866"),
    ("tiff_grey4.tif", (32, 32), "fa83d2edc6ef2bf0"),
    ("tiff_grey_alpha.tif", (32, 32), "333e8ddcae57524b"),
    ("tiff_group3.tif", (32, 32), "0f13204b59af7dfc"),
    ("tiff_pal4_f2_deflate_be.tif", (37, 29), "c0422517896c2fb7"),
    ("tiff_palette8.tif", (32, 32), "e123488f2910e66b"),
    ("tiff_pil_jpeg_CMYK_s.tif", (37, 29), "357b3ab5bce90bcb"),
    ("tiff_pil_jpeg_L_s.tif", (37, 29), "f84b69c3819d23e8"),
    ("tiff_pil_jpeg_YCbCr_s.tif", (37, 29), "6962b88010d97b20"),
    ("tiff_planar16_deflate_be.tif", (37, 29), "c49267a2b94093fd"),
    ("tiff_planar_tiles_be.tif", (37, 29), "e1595833759beb0c"),
    ("tiff_premultiplied.tif", (32, 32), "d9ad0996d6594a94"),
    ("tiff_premultiplied16.tif", (32, 32), "d9ad0996d6594a94"),
    ("tiff_zstd.tif", (32, 32), "2a6949d9d1d33631"),
];

/// The same picture written in other ways.
const SAME: [(&str, &str); 8] = [
    ("jxl_lossless.jxl", "tiff_planar_tiles_be.tif"),
    ("tiff_planar_tiles_deflate_le.tif", "tiff_planar_tiles_be.tif"),
    ("tiff_rgb_be_big.tif", "tiff_planar_tiles_be.tif"),
    ("tiff_pred16_be.tif", "tiff_planar16_deflate_be.tif"),
    ("tiff_palette4.tif", "tiff_palette8.tif"),
    ("xmp_only_6.png", "exif_long_6.png"),
    ("tiff_fax_group3_n_o0_p0_f1.tif", "tiff_fax_group4_n_o0_p1_f1.tif"),
    ("gif_no_trailer.gif", "gif_second_frame_cut.gif"),
];

#[test]
fn what_pillow_reads_has_pillows_pixels() {
    for (name, size, hash) in PILLOWS {
        let bytes = fixture(name);
        let image = decoded(&bytes).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(image.dimensions(), size, "{name}");
        assert_eq!(header(&bytes, &Limits::default()).unwrap().upright(), size, "{name}");
        assert_eq!(format!("{:.16}", ContentHash::of(image.as_raw())), hash, "{name}");
    }
    for (name, other) in SAME {
        assert!(decoded(&fixture(name)).unwrap() == decoded(&fixture(other)).unwrap(), "{name}");
    }
    // Pixels at (0, 5), (20, 5) and (36, 28); rounding may differ by one.
    for (name, pixels, by) in [
        ("tiff_ycc22_deflate_le.tif", [[7, 37, 1], [128, 39, 93], [242, 224, 238]], 1),
        ("tiff_ycc42_deflate_be.tif", [[10, 35, 3], [132, 37, 95], [242, 224, 238]], 1),
        // Pillow's by LittleCMS's tables.
        ("tiff_lab_le.tif", [[53, 0, 10], [190, 84, 0], [147, 255, 255]], 3),
    ] {
        let image = decoded(&fixture(name)).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        for ((x, y), pixel) in [(0, 5), (20, 5), (36, 28)].into_iter().zip(pixels) {
            let ours = image.get_pixel(x, y).0;
            assert!(ours.iter().zip(pixel).all(|(a, b)| a.abs_diff(b) <= by), "{name} at {x} {y}: {ours:?}, Pillow {pixel:?}");
        }
    }
}

/// What is beyond a decoder is unsupported by name, never corrupt, and never another picture of the file.
#[test]
fn what_is_not_read_is_told_by_name() {
    for (name, said) in [
        ("photo.dng", "camera raw (DNG)"),
        ("photo_rawfirst.dng", "camera raw (DNG)"),
        ("photo.CR2", "camera raw (CR2)"),
        ("photo.arw", "camera raw"),
        ("png_cgbi_iphone.png", "32 x 32"),
        ("bmp_png_inside.bmp", "a PNG inside"),
    ] {
        let bytes = fixture(name);
        for failure in [decoded(&bytes).unwrap_err(), header(&bytes, &Limits::default()).unwrap_err()] {
            assert_eq!(failure.reason, Reason::UnsupportedFormat, "{name}: {failure}");
            assert!(failure.message.contains(said), "{name}: {failure}");
        }
    }
    // A chunk that a reader must understand, of no kind that PNG has.
    let mut bytes = fixture("png_no_iend.png");
    bytes.splice(33..33, *b"\0\0\0\0ABCD\xdb\x17\x20\xa5");
    let failure = decoded(&bytes).unwrap_err();
    assert!(failure.reason == Reason::UnsupportedFormat && failure.message.contains("ABCD"), "{failure}");
    for (bytes, said) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "camera raw (CR3)"),
        (b"FUJIFILMCCD-RAW 0201FF159502", "camera raw (RAF)"),
        (b"IIU\0\x18\0\0\0", "camera raw (RW2)"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ] {
        let failure = decoded(bytes).unwrap_err();
        assert_eq!(failure.reason, Reason::UnsupportedFormat, "{failure}");
        assert!(failure.message.contains(said), "{failure}");
    }
}

/// A TIFF of one strip with the given tags, 16 bits each.
fn tiff(tags: &[(u16, u32)], data: &[u8]) -> Vec<u8> {
    let mut tags = tags.to_vec();
    tags.extend([(273, 8), (279, data.len() as u32)]);
    tags.sort();
    let mut file = b"II*\0".to_vec();
    file.extend((8 + data.len() as u32).to_le_bytes());
    file.extend(data);
    file.extend((tags.len() as u16).to_le_bytes());
    for (tag, value) in tags {
        file.extend(tag.to_le_bytes());
        file.extend(4u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file
}

#[test]
fn a_tiff_of_a_kind_that_is_not_read_says_which() {
    let basic = [(256, 8), (257, 8), (258, 8), (262, 1)];
    let with = |more: &[(u16, u32)]| {
        let mut tags: Vec<_> = basic.iter().copied().filter(|(tag, _)| more.iter().all(|(other, _)| other != tag)).collect();
        tags.extend(more);
        tiff(&tags, &[7; 64])
    };
    assert_eq!(decoded(&with(&[])).unwrap().get_pixel(3, 3).0, [7; 3]);
    for (more, said) in [
        (&[(259, 34661)][..], "JBIG"),
        (&[(259, 34925)], "LZMA"),
        (&[(259, 34712)], "JPEG 2000"),
        (&[(259, 6)], "old-style JPEG"),
        (&[(259, 999)], "compression 999"),
        (&[(262, 9)], "CIELab"),
        (&[(262, 32844)], "LogLuv"),
        (&[(339, 5)], "complex"),
        (&[(258, 24)], "24 bits"),
        (&[(262, 32803)], "colour filter array"),
        (&[(50706, 1)], "DNG"),
    ] {
        let failure = decoded(&with(more)).unwrap_err();
        assert_eq!(failure.reason, Reason::UnsupportedFormat, "{more:?}: {failure}");
        assert!(failure.message.contains(said), "{more:?}: {failure}");
    }
    // Beyond the file, and beyond memory.
    assert_eq!(decoded(&with(&[(257, 900)])).unwrap_err().reason, Reason::Truncated);
    assert_eq!(decoded(&with(&[(256, 1_000_000), (257, 1_000_000)])).unwrap_err().reason, Reason::TooLarge);
    let huge_tiles = with(&[(322, 1 << 28), (323, 1 << 20), (324, 8), (325, 64)]);
    assert_eq!(decoded(&huge_tiles).unwrap_err().reason, Reason::TooLarge);
}

/// Raw photos are often TIFF whose first picture is a thumbnail, and whose sensor data lies in a directory below it.
#[test]
fn a_thumbnail_of_a_raw_photo_is_not_the_photo() {
    for (below, said) in [((262, 32803), "colour filter array"), ((259, 34713), "NEF"), ((259, 32767), "ARW")] {
        let mut file = tiff(&[(256, 8), (257, 8), (258, 8), (262, 1), (330, 0)], &[7; 64]);
        let at = file.len() as u32;
        let place = file.windows(8).position(|entry| entry == [0x4A, 1, 4, 0, 1, 0, 0, 0]).unwrap() + 8;
        file[place..place + 4].copy_from_slice(&at.to_le_bytes());
        file.extend(1u16.to_le_bytes());
        file.extend((below.0 as u16).to_le_bytes());
        file.extend(4u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend((below.1 as u32).to_le_bytes());
        file.extend([0; 4]);
        let failure = decoded(&file).unwrap_err();
        assert_eq!(failure.reason, Reason::UnsupportedFormat, "{failure}");
        assert!(failure.message.contains(said), "{failure}");
    }
}

#[test]
fn jpeg_xl_is_read_and_its_early_end_told() {
    let whole = fixture("jxl_lossless.jxl");
    for length in [3, 30, 100, whole.len() / 2, whole.len() - 20] {
        assert_eq!(decoded(&whole[..length]).unwrap_err().reason, Reason::Truncated, "{length}");
    }
    let lossy = decoded(&fixture("jxl_lossy.jxl")).unwrap();
    let exact = decoded(&whole).unwrap();
    let difference: u64 = lossy.iter().zip(exact.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(difference / (lossy.len() as u64) < 12, "{difference}");
    let grey = decoded(&fixture("jxl_grey.jxl")).unwrap();
    assert_eq!(grey.get_pixel(10, 7).0, [71; 3]);
    assert_eq!(header(&fixture("jxl_grey.jxl"), &Limits::default()).unwrap().upright(), (37, 29));
}

#[test]
fn a_png_without_its_end_is_whole_where_its_pixels_are() {
    let image = RgbImage::from_fn(60, 60, |x, y| image::Rgb([x as u8 * 4, y as u8, (x * y) as u8]));
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, ImageFormat::Png).unwrap();
    let file = file.into_inner();
    // The last chunk has 12 bytes, the pixels' checksums 4 and 4.
    for lost in [1, 8, 12, 14, 16] {
        assert!(decoded(&file[..file.len() - lost]).unwrap_or_else(|failure| panic!("{lost}: {failure}")) == image, "{lost}");
    }
    for lost in [40, 200, 1000] {
        assert_eq!(decoded(&file[..file.len() - lost]).unwrap_err().reason, Reason::Truncated, "{lost}");
    }
}

/// Every fixture, damaged in every way: an answer in a short time, whatever it is. CLIPCAP_MUTATIONS says how many.
#[test]
fn mutated_pictures_end_in_an_answer() {
    let mut files = Vec::new();
    for folder in [folder(), folder().join("..")] {
        let mut paths: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
        paths.sort();
        files.extend(paths.into_iter().map(|path| fs::read(path).unwrap()));
    }
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % bound.max(1) as u64) as usize
    };
    let limits = Limits { max_pixels: 4_000_000, ..Limits::default() };
    let (mut answers, mut slowest) = ([0; 2], Duration::ZERO);
    let rounds = std::env::var("CLIPCAP_MUTATIONS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(600);
    for round in 0..rounds {
        let mut bytes = files[round % files.len()].clone();
        match below(4) {
            0 => bytes.truncate(below(bytes.len())),
            1 => {
                let other = &files[below(files.len())];
                let (at, from) = (below(bytes.len()), below(other.len()));
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                for _ in 0..=below(12) {
                    // Headers decide more than pixels.
                    let reach = if below(2) == 0 { 64 } else { bytes.len() };
                    let at = below(reach.min(bytes.len()));
                    bytes[at] ^= 1 << below(8);
                }
            }
        }
        let start = Instant::now();
        let result = decode(&bytes, &limits, true);
        slowest = slowest.max(start.elapsed());
        answers[usize::from(result.is_ok())] += 1;
        let _ = header(&bytes, &limits);
    }
    eprintln!("{rounds} mutated pictures: {answers:?} failed and read, slowest {slowest:?}");
    assert!(answers[0] > 100 && answers[1] > 20, "{answers:?}");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}
