//! Pictures of every kind, whole, cut, damaged and hostile.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use clipcap::image::{
    Failure, Format, Limits, Reason, begins_like_an_image, called_an_image, decode, file_header, header, load, load_bytes,
};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| ["jpg", "png", "gif", "webp", "bmp", "tif"].iter().any(|end| name.ends_with(end)));
    names.sort();
    names.into_iter().map(|name| (name.clone(), fixture(&name))).collect()
}

fn decoded(bytes: &[u8]) -> Result<RgbImage, Failure> {
    decode(bytes, &Limits::default(), true)
}

fn reason(bytes: &[u8]) -> Reason {
    decoded(bytes).expect_err("no pixels").reason
}

fn written(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.into().write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn near(a: [u8; 3], b: [u8; 3], by: u8) -> bool {
    a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= by)
}

/// Pixels at (0, 5), (20, 5) and (51, 5), as Pillow gives them.
#[test]
fn every_kind_has_pillows_pixels() {
    let expected = [
        ("baseline_420.jpg", [[9, 175, 137], [88, 182, 120], [207, 169, 120]], 3),
        ("progressive_420.jpg", [[9, 175, 137], [88, 182, 120], [207, 169, 120]], 3),
        ("restart.jpg", [[0, 182, 127], [92, 186, 124], [206, 173, 122]], 3),
        ("restart_progressive_422.jpg", [[6, 177, 125], [88, 189, 121], [208, 172, 122]], 3),
        ("grey_progressive.jpg", [[121; 3], [149; 3], [174; 3]], 3),
        ("lossy.webp", [[4, 182, 136], [91, 186, 120], [209, 170, 119]], 3),
        ("lzw.tif", [[0, 185, 121], [92, 188, 117], [204, 165, 120]], 0),
        ("deflate.tif", [[0, 185, 121], [92, 188, 117], [204, 165, 120]], 0),
        ("jpeg.tif", [[7, 180, 119], [87, 186, 112], [203, 167, 122]], 3),
        ("palette.bmp", [[30, 189, 144], [94, 189, 109], [197, 136, 130]], 0),
        ("palette.png", [[30, 189, 144], [94, 189, 109], [197, 136, 130]], 0),
        ("palette.gif", [[18, 178, 117], [92, 191, 100], [201, 165, 122]], 0),
    ];
    for (name, pixels, by) in expected {
        let image = decoded(&fixture(name)).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(image.dimensions(), (52, 37), "{name}");
        for (x, pixel) in [0, 20, 51].into_iter().zip(pixels) {
            let ours = image.get_pixel(x, 5).0;
            assert!(near(ours, pixel, by), "{name} at {x}: {ours:?}, Pillow {pixel:?}");
        }
    }
    let cmyk = decoded(&fixture("cmyk.jpg")).unwrap();
    assert!(near(cmyk.get_pixel(3, 8).0, [46, 190, 139], 3), "{:?}", cmyk.get_pixel(3, 8));
    assert!(near(cmyk.get_pixel(20, 8).0, [149, 21, 155], 3), "{:?}", cmyk.get_pixel(20, 8));
}

#[test]
fn alpha_is_dropped_and_of_16_bits_the_high_byte_stays() {
    let png = |image: DynamicImage| decoded(&written(image, ImageFormat::Png)).unwrap().get_pixel(0, 0).0;
    assert_eq!(png(image::RgbaImage::from_pixel(2, 2, image::Rgba([10, 20, 30, 0])).into()), [10, 20, 30]);
    assert_eq!(png(image::GrayAlphaImage::from_pixel(2, 2, image::LumaA([77, 0])).into()), [77; 3]);
    assert_eq!(png(image::GrayImage::from_pixel(2, 2, image::Luma([78])).into()), [78; 3]);
    let grey = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(2, 2, image::Luma([0x80FF]));
    assert_eq!(png(grey.into()), [0x80; 3]);
    let colour = image::ImageBuffer::<image::Rgba<u16>, _>::from_pixel(2, 2, image::Rgba([0x01FF, 0x8000, 0xFFFF, 0]));
    assert_eq!(png(colour.into()), [0x01, 0x80, 0xFF]);
}

/// Cut anywhere, a file is truncated; one that lacks only what stands behind its pixels is whole.
#[test]
fn grey_of_16_bits_that_holds_bytes_is_taken_as_bytes() {
    let rows = |values: [u16; 4]| image::ImageBuffer::<image::Luma<u16>, _>::from_raw(2, 2, values.to_vec()).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let greys = |values| {
            let decoded = decoded(&written(rows(values), format)).unwrap();
            decoded.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(greys([0, 7, 200, 255]), [0, 7, 200, 255], "{format:?}");
        // One number beyond a byte, and they are of 16 bits.
        assert_eq!(greys([0, 7, 255, 256]), [0, 0, 0, 1], "{format:?}");
        assert_eq!(greys([0; 4]), [0; 4], "{format:?}");
    }
}

#[test]
fn a_file_cut_anywhere_is_truncated() {
    for (name, bytes) in fixtures() {
        let whole = decoded(&bytes).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        // JPEG's end marker, PNG's checksums and last chunk, GIF's last block and trailer, where TIFF's next directory would be.
        let ends = [("jpg", 2), ("png", 24), ("gif", 4), ("tif", 8)];
        let marker = ends.iter().find(|(end, _)| name.ends_with(end)).map_or(0, |(_, marker)| *marker);
        for length in 4..bytes.len() {
            match decoded(&bytes[..length]) {
                Ok(image) => {
                    assert!(length + marker >= bytes.len() && image == whole, "{name} cut at {length} of {}", bytes.len())
                }
                Err(failure) => assert_eq!(failure.reason, Reason::Truncated, "{name} cut at {length}: {failure}"),
            }
        }
    }
}

#[test]
fn what_follows_a_picture_does_no_harm() {
    for (name, mut bytes) in fixtures() {
        let whole = decoded(&bytes).unwrap();
        bytes.extend([0; 300]);
        assert!(decoded(&bytes).unwrap_or_else(|failure| panic!("{name}: {failure}")) == whole, "{name}");
    }
}

#[test]
fn an_odd_jpeg_is_not_a_damaged_one() {
    let bytes = fixture("baseline_420.jpg");
    let whole = decoded(&bytes).unwrap();
    // Stray bytes between the application segment and the rest: every browser reads on.
    let mut odd = bytes.clone();
    odd.splice(20..20, [0; 10]);
    assert!(decoded(&odd).unwrap() == whole);
    // No Huffman code is all ones: nothing behind it can be right.
    let mut damaged = bytes.clone();
    let middle = bytes.len() - 200;
    for pair in damaged[middle..middle + 40].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0xFF, 0x00]);
    }
    assert_eq!(reason(&damaged), Reason::Corrupt);
}

#[test]
fn damage_is_told_from_an_early_end() {
    let mut png = written(RgbImage::from_fn(60, 60, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8])), ImageFormat::Png);
    let middle = png.len() / 2;
    png[middle] ^= 0x55;
    assert_eq!(reason(&png), Reason::Corrupt);
    let mut jpeg = fixture("progressive_420.jpg");
    let table = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC4]).unwrap();
    jpeg[table + 5..table + 21].fill(0xFF);
    assert_eq!(reason(&jpeg), Reason::Corrupt);
    assert_eq!(reason(b""), Reason::Empty);
    assert_eq!(reason("这不是图片".as_bytes()), Reason::UnsupportedFormat);
}

/// A PNG of which only the header exists.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = written(RgbImage::new(1, 1), ImageFormat::Png);
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&file[12..29]);
    file[29..33].copy_from_slice(&crc.to_be_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let png = png_header(60_000, 60_000);
    assert_eq!(reason(&png), Reason::TooLarge);
    assert_eq!(reason(&png[..33]), Reason::TooLarge);
    assert_eq!(reason(&png[..24]), Reason::TooLarge);
    assert_eq!(header(&png, &Limits::default()).unwrap_err().reason, Reason::TooLarge);
    assert_eq!(reason(&png_header(0x7FFF_FFFF, 0x7FFF_FFFF)), Reason::TooLarge);

    let mut gif = fixture("palette.gif");
    gif[6..10].fill(0xFF);
    assert_eq!(reason(&gif), Reason::TooLarge);
    let mut bmp = fixture("palette.bmp");
    bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    assert_eq!(reason(&bmp), Reason::TooLarge);
    let mut jpeg = fixture("progressive_420.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC2]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);
    assert_eq!(reason(&jpeg), Reason::TooLarge);
    // Within the limit, and still far more than the data could ever fill.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
    assert_eq!(reason(&jpeg), Reason::Truncated);

    let small = Limits { max_pixels: 52 * 37 - 1, ..Limits::default() };
    for (name, bytes) in fixtures().into_iter().filter(|(name, _)| !name.starts_with("cmyk") && !name.starts_with("flat")) {
        assert_eq!(decode(&bytes, &small, true).unwrap_err().reason, Reason::TooLarge, "{name}");
        let enough = Limits { max_pixels: 52 * 37, ..Limits::default() };
        assert!(decode(&bytes, &enough, true).is_ok(), "{name}");
    }
}

/// A zlib stream of zeros: a literal, then as many repeats of 258 bytes.
fn zeros(repeats: u32) -> Vec<u8> {
    let (mut stream, mut bits, mut held) = (vec![0x78, 0x9c], 0u64, 0);
    let mut put = |value: u64, width: u32, stream: &mut Vec<u8>| {
        bits |= value << held;
        held += width;
        while held >= 8 {
            stream.push(bits as u8);
            (bits, held) = (bits >> 8, held - 8);
        }
    };
    // The last block, of fixed codes; a zero. Codes come with their first bit lowest.
    put(0b011, 3, &mut stream);
    put(0b0000_1100, 8, &mut stream);
    for _ in 0..repeats {
        // Length 258, distance 1.
        put(0b1010_0011, 8, &mut stream);
        put(0, 5, &mut stream);
    }
    // The end of the block, and whole bytes.
    put(0, 7 + 7, &mut stream);
    let adler = ((1 + 258 * u64::from(repeats)) % 65_521) << 16 | 1;
    stream.extend((adler as u32).to_be_bytes());
    stream
}

#[test]
fn a_colour_profile_that_inflates_without_end_takes_no_memory() {
    // In a process of its own: what other tests hold is not counted.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "images::profile_child", "--ignored", "--nocapture"]);
    let output = crate::common::run(&mut child, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    let peak: u64 = text.lines().find_map(|line| line.split("peak ").nth(1)).unwrap().trim().parse().unwrap();
    assert!(peak < 500, "{peak} MiB for a profile of 738");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn profile_child() {
    let plain = written(RgbImage::from_pixel(4, 3, image::Rgb([9, 8, 7])), ImageFormat::Png);
    let with_profile = |repeats: u32| {
        let mut chunk = b"iCCPname\0\0".to_vec();
        chunk.extend(zeros(repeats));
        // Behind the header, which ends at byte 33.
        let mut file = plain[..33].to_vec();
        file.extend((chunk.len() as u32 - 4).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
        file.extend(&plain[33..]);
        file
    };
    for repeats in [3, 3_000_000] {
        let image = decoded(&with_profile(repeats)).unwrap();
        assert_eq!((image.dimensions(), image.get_pixel(3, 2).0), ((4, 3), [9, 8, 7]));
        assert!(header(&with_profile(repeats), &Limits::default()).is_ok());
    }
    println!("peak {}", crate::common::peak_memory_mib());
}

/// An EXIF segment that says nothing but the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut segment = vec![0xFF, 0xE1, 0, (tiff.len() + 8) as u8];
    segment.extend(b"Exif\0\0");
    segment.extend(tiff);
    segment
}

#[test]
fn pictures_are_turned_upright() {
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
    let plain = fixture("baseline_420.jpg");
    let stored = decoded(&plain).unwrap();
    let turned: [RgbImage; 8] = [
        stored.clone(),
        flip_horizontal(&stored),
        rotate180(&stored),
        flip_vertical(&stored),
        flip_horizontal(&rotate90(&stored)),
        rotate90(&stored),
        flip_horizontal(&rotate270(&stored)),
        rotate270(&stored),
    ];
    for (orientation, expected) in (1..).zip(&turned) {
        let mut bytes = plain.clone();
        bytes.splice(2..2, exif(orientation));
        assert!(decoded(&bytes).unwrap() == *expected, "orientation {orientation}");
        assert!(decode(&bytes, &Limits::default(), false).unwrap() == stored, "orientation {orientation}");
        let header = header(&bytes, &Limits::default()).unwrap();
        assert_eq!((header.format, header.width, header.height), (Format::Jpeg, 52, 37));
        assert_eq!(header.upright(), expected.dimensions(), "orientation {orientation}");
    }
}

#[test]
fn a_header_is_read_without_the_pixels() {
    for (name, bytes) in fixtures() {
        let (width, height) = decoded(&bytes).unwrap().dimensions();
        let found = header(&bytes, &Limits::default()).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!((found.width, found.height), (width, height), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jpg");
    // The frame lies behind half a megabyte of metadata.
    let mut bytes = fixture("baseline_420.jpg");
    let mut comment = vec![0xFF, 0xFE, 0xFF, 0xFF];
    comment.resize(2 + 0xFFFF, b'.');
    for _ in 0..8 {
        bytes.splice(2..2, comment.iter().copied());
    }
    fs::write(&path, &bytes).unwrap();
    assert_eq!(file_header(&path, &Limits::default()).unwrap().width, 52);
}

/// What a folder may hold, file by file.
#[test]
fn files_are_examined_by_name_and_content() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let png = written(RgbImage::new(3, 2), ImageFormat::Png);
    let verdict = |path: &Path| {
        let looks_like_one = called_an_image(path) || begins_like_an_image(path);
        let loaded = looks_like_one.then(|| load(path, &Limits::default(), true)).transpose();
        loaded.map(|loaded| loaded.map(|loaded| loaded.pixels.dimensions())).map_err(|failure| failure.reason)
    };
    let put = |name: &str, bytes: &[u8]| {
        fs::write(at(name), bytes).unwrap();
        at(name)
    };
    assert_eq!(verdict(&put("a.png", &png)), Ok(Some((3, 2))));
    assert_eq!(verdict(&put("png called.jpg", &png)), Ok(Some((3, 2))));
    assert_eq!(verdict(&put("png called.dat", &png)), Ok(Some((3, 2))));
    assert_eq!(verdict(&put("cut.dat", &png[..50])), Err(Reason::Truncated));
    assert_eq!(verdict(&put("notes.txt", b"BMW and GIF are words")), Ok(None));
    assert_eq!(verdict(&put("text.jpg", b"not a picture")), Err(Reason::UnsupportedFormat));
    assert_eq!(verdict(&put("photo.HEIC", b"\0\0\0\x18ftypheic")), Err(Reason::UnsupportedFormat));
    assert_eq!(verdict(&put("nothing.jpg", b"")), Err(Reason::Empty));
    assert_eq!(verdict(&put("nothing", b"")), Ok(None));
    assert_eq!(verdict(&at("gone.jpg")), Err(Reason::Vanished));
    assert_eq!(verdict(&at("gone.txt")), Ok(None));

    // Nobody writes into this pipe: whoever opened it would wait for ever.
    assert!(std::process::Command::new("mkfifo").arg(at("y.jpg")).status().unwrap().success());
    assert_eq!(verdict(&at("y.jpg")), Err(Reason::Unreadable));
    fs::create_dir(at("x.jpg")).unwrap();
    assert_eq!(verdict(&at("x.jpg")), Err(Reason::Unreadable));

    use std::os::unix::fs::PermissionsExt;
    let closed = put("closed.png", &png);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&closed).is_err() {
        assert_eq!(verdict(&closed), Err(Reason::PermissionDenied));
    }
}

#[test]
fn a_failure_knows_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let png = written(RgbImage::new(30, 20), ImageFormat::Png);
    fs::write(&path, &png).unwrap();
    let loaded = load(&path, &Limits::default(), true).unwrap();
    assert_eq!(loaded.content.bytes, png.len() as u64);
    assert_eq!(loaded.content, load_bytes(&png, &Limits::default(), true).unwrap().content);
    assert_eq!(loaded.content.sha256, clipcap::files::ContentHash::of(&png));

    fs::write(&path, &png[..60]).unwrap();
    let failure = load(&path, &Limits::default(), true).unwrap_err();
    assert_eq!(failure.content.unwrap().sha256, clipcap::files::ContentHash::of(&png[..60]));

    let limits = Limits { max_bytes: 59, ..Limits::default() };
    let failure = load(&path, &limits, true).unwrap_err();
    assert_eq!((failure.reason, failure.content), (Reason::TooLarge, None));
}

/// Bytes changed anywhere: pixels or a reason, never a panic, and never more memory than the limits say.
#[test]
fn mutated_files_give_pixels_or_a_reason() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let limits = Limits { max_pixels: 1 << 20, max_bytes: 1 << 20 };
    let mut reasons = std::collections::BTreeMap::new();
    for (_, bytes) in fixtures() {
        for _ in 0..150 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + random(4) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            match decode(&bytes, &limits, true) {
                Ok(image) => assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.max_pixels),
                Err(failure) => *reasons.entry(failure.reason.as_str()).or_insert(0) += 1,
            }
        }
    }
    assert!(reasons["corrupt"] > 0 && reasons["truncated"] > 0, "{reasons:?}");
}
