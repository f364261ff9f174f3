//! `preprocessor_config.json`: what CLIP's pictures go through, and the last step of it, from bytes to floats.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::decode::{Area, Decoded};
pub use super::resize::Filter;
use super::resize::{self, Axis};

mod file;

use file::{File, Sides};

/// How large a picture is made before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// The short side gets this length, the long one keeps the proportion (rounded down).
    ShortestEdge(u32),
    /// The long side gets this length, the short one keeps the proportion (rounded); the crop then pads with black.
    LongestEdge(u32),
    /// Both sides, whatever the proportion.
    Exact { width: u32, height: u32 },
}

/// The steps and their numbers. A step that is off is None.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// With antialias.
    pub resize: Option<Size>,
    pub filter: Filter,
    /// Width and height.
    pub center_crop: Option<(u32, u32)>,
    pub rescale_factor: Option<f64>,
    pub normalize: Option<Normalize>,
}

/// `(value - mean) / std` for red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalize {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// What can be wrong with a preprocessor's configuration.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// `preprocessor_config.json` cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file says something that is not possible.
    #[error("{}: {source}", path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// What.
        source: Box<PreprocessError>,
    },
    /// The text is not JSON, or a key has a value of another type.
    #[error("not a preprocessor configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of range, or of a kind that is not known.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// From a decoded picture to the encoder's input, as CLIP's own transform (torchvision on Pillow) does it.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    settings: Settings,
    /// Width and height of every result.
    output: (u32, u32),
    /// What each byte becomes, by channel.
    tables: Box<[[f32; 256]; 3]>,
    /// The last step is the encoder's: results are bytes, four to a number.
    packed: bool,
}

/// What CLIP was trained with, as its configurations write it.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Twice the pixels of ViT-B/32. With fewer, encoders of 64 pixels saw the difference (cosine 0.998 on photos of 1600 pixels).
const LEAST_DECODED: u64 = 448;

/// Pictures of more pixels are large; those of Flickr30k and COCO are not.
const LARGE_PIXELS: u64 = 640 * 640;

/// Sides beyond this are a mistake in a configuration, not a picture an encoder takes.
const MAX_SIDE: u32 = 1 << 14;

impl Preprocess {
    /// # Errors
    /// [`PreprocessError::Value`] where sizes are zero or huge, where pictures would come out in different sizes (a short side
    /// without a crop), or where a standard deviation is zero.
    pub fn new(settings: Settings) -> Result<Self, PreprocessError> {
        let output = match (settings.resize, settings.center_crop) {
            (_, Some(crop)) => crop,
            (Some(Size::Exact { width, height }), None) => (width, height),
            (resize, None) => {
                let expected = "a crop, or a size with height and width: pictures must come out in one size";
                return Err(PreprocessError::Value {
                    key: "do_center_crop",
                    found: format!("false, with size {resize:?}"),
                    expected,
                });
            }
        };
        let resized = match settings.resize {
            Some(Size::ShortestEdge(edge) | Size::LongestEdge(edge)) => (edge, edge),
            Some(Size::Exact { width, height }) => (width, height),
            None => output,
        };
        for (key, side) in [("crop_size", output.0), ("crop_size", output.1), ("size", resized.0), ("size", resized.1)] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(PreprocessError::Value { key, found: side.to_string(), expected: "1 to 16384 pixels" });
            }
        }
        if let Some(std) = settings.normalize.map(|n| n.std).filter(|std| std.iter().any(|&s| s == 0.0 || !s.is_finite())) {
            return Err(PreprocessError::Value { key: "image_std", found: format!("{std:?}"), expected: "numbers other than 0" });
        }
        let tables = Box::new([0, 1, 2].map(|channel| table(&settings, channel)));
        Ok(Self { settings, output, tables, packed: false })
    }

    /// Reads `preprocessor_config.json`, old forms (`"size": 224`) and new (`"size": {"shortest_edge": 224}`) alike. What is
    /// missing has CLIP's usual value.
    ///
    /// # Errors
    /// Names the file and the key: unreadable, not JSON, a filter or a form of size that is not known.
    pub fn from_file(path: &Path) -> Result<Self, PreprocessError> {
        let read = |source| PreprocessError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::from_json(&text).map_err(|source| PreprocessError::At { path: path.to_owned(), source: Box::new(source) })
    }

    /// [`from_file`](Self::from_file) for text that is already read.
    pub fn from_json(text: &str) -> Result<Self, PreprocessError> {
        let file: File = serde_json::from_str(text)?;
        let on = |switch: Option<bool>| switch.unwrap_or(true);
        let filter = match (&file.resample, on(file.do_resize)) {
            (Some(number), true) => Filter::of_pillow(number).ok_or_else(|| PreprocessError::Value {
                key: "resample",
                found: number.to_string(),
                expected: "1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming)",
            })?,
            _ => Filter::Bicubic,
        };
        let numbers = |key, numbers: Option<Vec<f32>>, usual| match numbers.as_deref() {
            None => Ok(usual),
            Some(&[r, g, b]) => Ok([r, g, b]),
            Some(other) => Err(PreprocessError::Value { key, found: format!("{other:?}"), expected: "three numbers" }),
        };
        let normalize = Normalize {
            mean: numbers("image_mean", file.image_mean, MEAN.map(|mean| mean as f32))?,
            std: numbers("image_std", file.image_std, STD.map(|std| std as f32))?,
        };
        let crop = match file.crop_size {
            None => (224, 224),
            Some(Sides { height: Some(height), width: Some(width), shortest_edge: None, .. }) => (width, height),
            Some(Sides { shortest_edge: Some(edge), height: None, width: None, .. }) => (edge, edge),
            Some(other) => return Err(other.unknown("crop_size")),
        };
        let size = match file.size {
            None => Size::ShortestEdge(224),
            Some(Sides { shortest_edge: Some(edge), height: None, width: None, longest_edge: None }) => Size::ShortestEdge(edge),
            Some(Sides { longest_edge: Some(edge), height: None, width: None, shortest_edge: None }) => Size::LongestEdge(edge),
            Some(Sides { height: Some(height), width: Some(width), shortest_edge: None, .. }) => Size::Exact { width, height },
            Some(other) => return Err(other.unknown("size")),
        };
        Self::new(Settings {
            resize: on(file.do_resize).then_some(size),
            filter,
            center_crop: on(file.do_center_crop).then_some(crop),
            rescale_factor: on(file.do_rescale).then_some(file.rescale_factor.unwrap_or(1.0 / 255.0)),
            normalize: on(file.do_normalize).then_some(normalize),
        })
    }

    /// What the configuration says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same, but for the last step: an image comes as bytes [height, width, 3], four to a number of what is otherwise [3, height, width]. The
    /// encoder's graph does the rest with [`tables`](Self::tables), so that a quarter crosses to a card.
    pub fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    /// Whether results are bytes; see [`packed`](Self::packed).
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// What each byte becomes, for red, green and blue.
    pub fn tables(&self) -> &[[f32; 256]; 3] {
        &self.tables
    }

    /// Bytes of an image before the last step: [height, width, 3].
    pub fn num_bytes(&self) -> usize {
        3 * self.output.0 as usize * self.output.1 as usize
    }

    /// Numbers of an image that is prepared: [3, height, width], or a quarter of it where they are [`packed`](Self::packed).
    pub fn num_values(&self) -> usize {
        if self.packed { self.num_bytes().div_ceil(size_of::<f32>()) } else { self.num_bytes() }
    }

    /// Width and height of every result.
    pub fn output_size(&self) -> (u32, u32) {
        self.output
    }

    /// Resizes (as Pillow: antialiased, width first, 8 bits in between) and cuts out the middle; what a picture lacks to
    /// the crop is black around it.
    pub fn resize_and_crop(&self, image: &RgbImage) -> RgbImage {
        let (width, height) = image.dimensions();
        let (wide, high) = self.resized(width, height);
        let (across, down) = (Axis::new(width, wide, self.output.0), Axis::new(height, high, self.output.1));
        resize::resize_and_crop(image, across, down, self.settings.filter)
    }

    /// [`resize_and_crop`](Self::resize_and_crop) of a picture that may have been decoded smaller than it is: the same part of it, in
    /// the same proportion.
    pub fn resize_and_crop_decoded(&self, picture: &Decoded) -> RgbImage {
        let (width, height) = picture.pixels.dimensions();
        let (wide, high) = self.resized(picture.full.0, picture.full.1);
        let Area { left, top, width: across, height: down } = picture.area;
        resize::resize_and_crop(
            &picture.pixels,
            Axis::of_part(width, left, across, wide, self.output.0),
            Axis::of_part(height, top, down, high, self.output.1),
            self.settings.filter,
        )
    }

    /// By what a picture's width and height may be divided while it is decoded: by 2, 4 or 8 where at least twice the pixels that
    /// are wanted, and [`LEAST_DECODED`], are left in both directions, which the resize cannot tell from all of them. A picture that is not
    /// large is decoded whole: it costs little, and for an encoder of few pixels the difference would be seen.
    pub fn denominator(&self, width: u32, height: u32) -> u32 {
        if self.settings.resize.is_none() || u64::from(width) * u64::from(height) <= LARGE_PIXELS {
            return 1;
        }
        let (wide, high) = self.resized(width, height);
        let enough =
            |side: u32, denominator: u32, wanted: u64| u64::from(side.div_ceil(denominator)) >= (2 * wanted).max(LEAST_DECODED);
        let fits = |denominator: &u32| enough(width, *denominator, wide) && enough(height, *denominator, high);
        [8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// Width and height before the crop.
    fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        match self.settings.resize {
            None => (width.into(), height.into()),
            Some(Size::Exact { width, height }) => (width.into(), height.into()),
            Some(Size::ShortestEdge(edge)) => {
                let long = |side: u32, short: u32| u64::from(edge) * u64::from(side) / u64::from(short.max(1));
                if width <= height { (edge.into(), long(height, width)) } else { (long(width, height), edge.into()) }
            }
            Some(Size::LongestEdge(edge)) => {
                let ratio = f64::from(width.max(height)) / f64::from(edge);
                let side = |side: u32| (f64::from(side) / ratio).round_ties_even().max(1.0) as u64;
                (side(width), side(height))
            }
        }
    }

    /// Rescales and normalizes into `out`: [3, height, width], float32; packed, its bytes as they are.
    ///
    /// # Panics
    /// Where `out` is not three floats a pixel of `image`, or what [`num_values`](Self::num_values) says of it packed.
    pub fn normalize_into(&self, image: &RgbImage, out: &mut [f32]) {
        if self.packed {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
            bytes[..image.as_raw().len()].copy_from_slice(image.as_raw());
            return;
        }
        let pixels = image.as_raw().len() / 3;
        assert_eq!(out.len(), 3 * pixels, "an output of three planes of {pixels} pixels");
        if pixels == 0 {
            return;
        }
        for ((channel, plane), table) in out.chunks_exact_mut(pixels).enumerate().zip(&*self.tables) {
            for (value, pixel) in plane.iter_mut().zip(image.as_raw().chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
}

/// In float64 up to the rescaled value and in float32 from there, as the original does.
fn table(settings: &Settings, channel: usize) -> [f32; 256] {
    std::array::from_fn(|byte| {
        let value = settings.rescale_factor.map_or(byte as f32, |factor| (byte as f64 * factor) as f32);
        settings.normalize.map_or(value, |n| (value - n.mean[channel]) / n.std[channel])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_files_say_the_same() {
        let old = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true, "feature_extractor_type":
            "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258,
            0.27577711], "resample": 3, "size": 224}"#;
        let new = r#"{"crop_size": {"height": 224, "width": 224}, "do_rescale": true, "rescale_factor": 0.00392156862745098,
            "resample": 3, "size": {"shortest_edge": 224}}"#;
        let (old, new) = (Preprocess::from_json(old).unwrap(), Preprocess::from_json(new).unwrap());
        assert_eq!(old, new);
        assert_eq!(old, Preprocess::from_json("{}").unwrap());
        assert_eq!(new.output_size(), (224, 224));
        assert_eq!(new.settings().resize, Some(Size::ShortestEdge(224)));
    }

    #[test]
    fn large_pictures_are_decoded_smaller_and_small_ones_are_not() {
        let denominators = |text: &str| {
            let preprocess = Preprocess::from_json(text).unwrap();
            move |width, height| preprocess.denominator(width, height)
        };
        let usual = denominators("{}");
        assert_eq!([(500, 375), (894, 3000), (895, 895), (4000, 3000)].map(|(w, h)| usual(w, h)), [1, 1, 2, 4]);
        assert_eq!([(3000, 4000), (3584, 3584), (30_000, 447), (30_000, 1792)].map(|(w, h)| usual(w, h)), [4, 8, 1, 4]);
        let exact = denominators(r#"{"size": {"height": 100, "width": 300}, "do_center_crop": false}"#);
        assert_eq!([(1200, 400), (1200, 4000), (599, 400), (2400, 800)].map(|(w, h)| exact(w, h)), [1, 2, 1, 1]);
        let small = denominators(r#"{"size": 64, "crop_size": 64}"#);
        assert_eq!([(500, 375), (640, 640), (1000, 750), (4000, 3000)].map(|(w, h)| small(w, h)), [1, 1, 1, 4]);
        let off = denominators(r#"{"do_resize": false}"#);
        assert_eq!(off(4000, 3000), 1);
    }

    #[test]
    fn switches_turn_steps_off() {
        let off = Preprocess::from_json(
            r#"{"do_resize": false, "do_rescale": false, "do_normalize": false, "resample": 2, "crop_size": {"height": 3, "width": 2}}"#,
        );
        let off = off.unwrap();
        let image = RgbImage::from_fn(4, 5, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let crop = off.resize_and_crop(&image);
        assert_eq!(crop.dimensions(), (2, 3));
        assert_eq!(crop.get_pixel(0, 0).0, [1, 1, 9]);
        let mut out = [0.0; 18];
        off.normalize_into(&crop, &mut out);
        assert_eq!(out, [1., 2., 1., 2., 1., 2., 1., 1., 2., 2., 3., 3., 9., 9., 9., 9., 9., 9.]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let message = |text: &str| Preprocess::from_json(text).unwrap_err().to_string();
        assert!(message(r#"{"resample": 0}"#).contains("resample is 0"));
        assert!(message(r#"{"resample": "lanczos"}"#).contains("lanczos"));
        assert!(message(r#"{"size": {"shortest_edge": 224, "longest_edge": 300}}"#).contains("size"));
        assert!(message(r#"{"size": 0}"#).contains("size is 0"));
        assert!(message(r#"{"crop_size": 4000000000}"#).contains("crop_size"));
        assert!(message(r#"{"do_center_crop": false}"#).contains("one size"));
        assert!(message(r#"{"image_std": [0.1, 0, 0.1]}"#).contains("image_std"));
        assert!(message(r#"{"image_mean": [0.1]}"#).contains("three numbers"));
        assert!(message("[]").contains("not a preprocessor configuration"));
    }

    #[test]
    fn an_error_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("preprocessor_config.json");
        assert!(Preprocess::from_file(&path).unwrap_err().to_string().contains("preprocessor_config.json"));
        std::fs::write(&path, r#"{"resample": 7}"#).unwrap();
        let text = Preprocess::from_file(&path).unwrap_err().to_string();
        assert!(text.contains("preprocessor_config.json") && text.contains("resample is 7"), "{text}");
    }
}
