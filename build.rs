//! Compiles the C file that stands between libjpeg-turbo (which `turbojpeg-sys` builds) and `src/image/jpeg/library.rs`.

use std::fs;
use std::path::Path;

fn main() {
    let source = "src/image/jpeg/library.c";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    let headers = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys says where its headers are");
    let mut build = cc::Build::new();
    for folder in headers.split(',') {
        let config = fs::read_to_string(Path::new(folder).join("jconfig.h")).unwrap_or_default();
        // Without it, reading photos takes three times as long, and nothing else would tell.
        assert!(
            config.lines().any(|line| line.starts_with("#define WITH_SIMD 1")),
            "libjpeg-turbo was built without SIMD: install NASM (apt install nasm), then `cargo clean -p turbojpeg-sys`"
        );
        build.include(folder);
    }
    build.file(source).compile("clipcap_jpeg");
}
