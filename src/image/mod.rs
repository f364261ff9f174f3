//! From a file to the pixels CLIP sees: read once, hash, decode within limits, turn upright, resize, crop, normalize.
//!
//! Nothing here trusts a file: its format is told by content, its size is checked before memory is taken, a decoder's panic is
//! a [`Failure`] like any other, and a file that ends early is never mistaken for a picture that is grey below.

mod bmp;
mod decode;
mod failure;
mod foreign;
mod gif;
#[cfg(test)]
mod golden;
mod guard;
mod jpeg;
mod jxl;
mod load;
mod orientation;
mod png;
mod preprocess;
mod resize;
mod sniff;
mod structure;
mod thumbnail;
mod tiff;

pub use self::decode::{Area, Decoded, Header, Limits, decode, decode_at, header};
pub use self::failure::{Content, Failure, Reason};
pub use self::load::{Loaded, begins_like_an_image, file_header, load, load_bytes, read};
pub use self::preprocess::{Preprocess, PreprocessError};
pub(crate) use self::sniff::sniff;
pub use self::sniff::{Format, called_an_image};
pub(crate) use self::thumbnail::Thumbnail;
