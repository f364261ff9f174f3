//! Which images stand on which page, and what the pages are called.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::images::Image;
use crate::files::{between, paths_in};

/// Images of the page of the worst: at most so many by each measure.
pub const WORST: usize = 300;

/// Pixels of a thumbnail's longer edge that are tried, and the one where one page does not hold all images anyway.
const EDGES: [u32; 4] = [256, 192, 160, 128];
const EDGE_OF_MANY: u32 = 160;

/// The largest usual edge with which `num_images` thumbnails and `text_bytes` fit into a page.
pub fn edge_for(num_images: usize, text_bytes: u64, page_bytes: u64, quality: u8) -> u32 {
    let room = page_bytes.saturating_sub(text_bytes);
    let fits = |edge: &u32| num_images as u64 * base64_len(usual_bytes(*edge, quality)) <= room;
    EDGES.into_iter().find(fits).unwrap_or(EDGE_OF_MANY)
}

/// Bytes that a thumbnail of a photo hardly exceeds: measured on photos, a quarter of a byte a pixel of the square at quality 70.
pub fn usual_bytes(edge: u32, quality: u8) -> usize {
    let share = (f64::from(quality) / 70.0).powi(2).clamp(0.5, 2.5) / 4.0;
    (f64::from(edge).powi(2) * share) as usize
}

/// Characters that some bytes take in a page, a line end included.
pub fn base64_len(bytes: usize) -> u64 {
    bytes.div_ceil(3) as u64 * 4 + 1
}

/// `count` of `total`, evenly spread.
pub fn spread(total: usize, count: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    (0..count).map(|number| (number as u128 * total as u128 / count.max(1) as u128) as usize).collect()
}

/// Splits images, of `sizes` bytes each, into pages of about the same size, none above `limit` bytes unless one image alone is.
pub fn split(images: &[usize], sizes: &[u64], limit: u64) -> Vec<Vec<usize>> {
    let (total, largest) = (sizes.iter().sum::<u64>(), sizes.iter().copied().max().unwrap_or(0));
    // A page ends with the image that reaches its share, so that it may be one image too long.
    let count = if total <= limit { 1 } else { total.div_ceil(limit.saturating_sub(largest).max(1)) };
    let mut pages = vec![Vec::new()];
    let mut before = 0;
    for (&image, &size) in images.iter().zip(sizes) {
        if before * count >= total * pages.len() as u64 && before > 0 {
            pages.push(Vec::new());
        }
        before += size;
        pages.last_mut().expect("one page from the beginning").push(image);
    }
    pages
}

/// What an image's captions are judged by: the first of these that the tables have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    ClipScore,
    Cider,
    /// Log-probability a token.
    Logprob,
}

impl Measure {
    /// The measure of a report.
    pub fn of(images: &[Image]) -> Self {
        let has = |measure: Self| images.iter().any(|image| measure.goodness(image).is_some());
        [Self::ClipScore, Self::Cider].into_iter().find(|measure| has(*measure)).unwrap_or(Self::Logprob)
    }

    /// What it is called in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClipScore => "CLIP score",
            Self::Cider => "CIDEr",
            Self::Logprob => "log-probability per token",
        }
    }

    /// Of an image's first caption, the first table's that has one; greater is better.
    fn goodness(self, image: &Image) -> Option<f64> {
        let details = image.tables.iter().find_map(|table| table.details.first());
        match self {
            Self::ClipScore => details?.clip_score,
            Self::Cider => image.first_figures()?.scores.map(|[cider, _]| cider),
            Self::Logprob => Some(details?.logprob? / details?.num_tokens.filter(|n| *n > 0)? as f64),
        }
    }
}

/// The `count` images with the worst repetitions, and as many of the lowest [`Measure`], in the order of the table.
pub fn worst(images: &[Image], count: usize) -> Vec<usize> {
    let mut repeating: Vec<(usize, f64)> = images.iter().map(Image::repetition).enumerate().filter(|(_, r)| *r > 0.0).collect();
    repeating.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let measure = Measure::of(images);
    let goodness = |image: &Image| measure.goodness(image);
    let mut lowest: Vec<(usize, f64)> =
        images.iter().enumerate().filter_map(|(at, image)| Some((at, goodness(image)?))).collect();
    lowest.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let mut chosen: Vec<usize> = repeating.iter().take(count).chain(lowest.iter().take(count)).map(|(at, _)| *at).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// Names of a report's pages.
pub struct Names {
    out: PathBuf,
}

/// What every page of ours has near its beginning.
const MARK: &str = "<meta name=\"generator\" content=\"clipcap\">";

impl Names {
    pub fn new(out: &Path) -> Self {
        Self { out: out.into() }
    }

    /// The first page is the file that was asked for; `FILE.2.html` is the second.
    pub fn page(&self, number: usize) -> PathBuf {
        if number == 0 { self.out.clone() } else { self.beside(&(number + 1).to_string()) }
    }

    pub fn worst(&self) -> PathBuf {
        self.beside("worst")
    }

    fn beside(&self, part: &str) -> PathBuf {
        let mut name = self.out.file_stem().unwrap_or_default().to_os_string();
        name.push(format!(".{part}.html"));
        self.out.with_file_name(name)
    }

    /// Refuses to write over a file that is no page of ours.
    pub fn check(&self, paths: &[PathBuf]) -> Result<()> {
        for path in paths.iter().filter(|path| path.symlink_metadata().is_ok()) {
            if path.is_dir() {
                bail!("{} is a folder: choose another --out", path.display());
            }
            if !is_ours(path) {
                bail!("{} exists and is not a report: choose another --out, or give --overwrite to replace it", path.display());
            }
        }
        Ok(())
    }

    /// Removes pages of an earlier, longer report.
    pub fn remove_surplus(&self, written: &[PathBuf]) -> Result<()> {
        let context = || format!("cannot tidy {}", self.out.display());
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let prefix = format!("{}.", self.out.file_stem().unwrap_or_default().to_string_lossy());
        for found in paths_in(folder).with_context(context)? {
            let is_page = between(&found, &prefix, ".html")
                .is_some_and(|part| part == "worst" || (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())));
            let path = self.out.with_file_name(found.file_name().unwrap_or_default());
            if is_page && !written.contains(&path) && is_ours(&path) {
                fs::remove_file(&path).with_context(context)?;
            }
        }
        Ok(())
    }
}

fn is_ours(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(2048).read_to_end(&mut head));
    read.is_ok() && String::from_utf8_lossy(&head).contains(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::Page;

    #[test]
    fn pages_are_alike_and_within_the_limit() {
        let images: Vec<usize> = (0..1000).collect();
        let sizes: Vec<u64> = images.iter().map(|&image| 500 + (image as u64 * 7919) % 900).collect();
        for limit in [2_000, 10_000, 100_000, 1 << 30] {
            let pages = split(&images, &sizes, limit);
            assert_eq!(pages.concat(), images);
            let bytes: Vec<u64> = pages.iter().map(|page| page.iter().map(|&image| sizes[image]).sum()).collect();
            assert!(bytes.iter().all(|bytes| *bytes <= limit), "{limit}: {bytes:?}");
            assert!(bytes.iter().max().unwrap() - bytes.iter().min().unwrap() < 3000, "{limit}: {bytes:?}");
        }
        assert_eq!(split(&images, &sizes, 1 << 30).len(), 1);
        assert_eq!(split(&[5, 6], &[100, 100], 10), [vec![5], vec![6]]);
        assert_eq!(split(&[], &[], 10), [Vec::<usize>::new()]);
    }

    #[test]
    fn samples_are_spread_and_edges_shrink() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 4), [0, 1, 2]);
        let edge = |images| edge_for(images, 1 << 20, 64 << 20, 70);
        assert_eq!([edge(15), edge(5_000), edge(10_000), edge(1_000_000)], [256, 192, 128, 160]);
    }

    #[test]
    fn only_pages_of_ours_are_replaced_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let page = Page::new("x", "").finish();
        for name in ["r.html", "r.2.html", "r.3.html", "r.worst.html", "r.x.html", "other.2.html"] {
            fs::write(at(name), &page).unwrap();
        }
        fs::write(at("r.4.html"), "my own").unwrap();
        let names = Names::new(&at("r.html"));
        assert_eq!((names.page(0), names.page(1), names.worst()), (at("r.html"), at("r.2.html"), at("r.worst.html")));
        names.check(&[at("r.html"), at("none.html")]).unwrap();
        assert!(names.check(&[at("r.4.html")]).unwrap_err().to_string().contains("--overwrite"));
        names.remove_surplus(&[at("r.html"), at("r.2.html")]).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["other.2.html", "r.2.html", "r.4.html", "r.html", "r.x.html"]);
    }
}
