//! Pictures of every format, told by their bytes: header, orientation, pixels.
#![no_main]

use clipcap::image::{Limits, decode, header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    let _ = header(bytes, &limits);
    let _ = decode(bytes, &limits, true);
});
