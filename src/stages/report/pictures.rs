//! Thumbnails of the images, made on all threads and kept in a nameless file until pages take them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::images::Image;
use crate::dataset::listing::relative_path;
use crate::image::{Failure, Limits, Loaded, Reason, Thumbnail, called_an_image, load, load_bytes};
use crate::pipeline::sources::StoredImages;
use crate::pipeline::{Content, Interrupt, Reporter, Tick};

/// Where pictures come from.
pub enum PictureSource {
    /// Nobody said.
    Nothing,
    Folders(Vec<PathBuf>),
    Dataset(StoredImages),
}

/// What became of an image's thumbnail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    /// Not asked for.
    None,
    Missing(Reason),
    /// A place in the file. `changed`: the content is not what was captioned.
    Here {
        offset: u64,
        bytes: usize,
        changed: bool,
    },
}

/// All thumbnails, one for each image.
pub struct Pictures {
    file: File,
    pictures: Vec<Picture>,
}

/// Images that are decoded between two looks at the interrupt and the progress.
const IMAGES_AT_ONCE: usize = 128;

/// Endings tried where a table has ids and no paths.
const ENDINGS: [&str; 5] = [".jpg", ".jpeg", ".png", ".webp", ".JPG"];

impl PictureSource {
    /// `given` are folders of image files, or one dataset that stores its images. Without any, `references` may be such a dataset.
    pub fn open(given: &[PathBuf], references: Option<&Path>) -> Result<Self> {
        match given {
            [] => match references {
                Some(dataset) if dataset.join("images-00000.parquet").is_file() => {
                    Ok(Self::Dataset(StoredImages::open(dataset)?))
                }
                _ => Ok(Self::Nothing),
            },
            [dataset] if StoredImages::is_dataset(dataset) => Ok(Self::Dataset(StoredImages::open(dataset)?)),
            folders => {
                for folder in folders {
                    if !folder.is_dir() {
                        bail!("{}: no folder of images", folder.display());
                    }
                    if StoredImages::is_dataset(folder) {
                        bail!("{}: give one dataset or folders of images, not both", folder.display());
                    }
                }
                Ok(Self::Folders(folders.to_vec()))
            }
        }
    }
}

impl Pictures {
    /// Makes the thumbnails of the `wanted` images; nothing that is wrong with a picture stops it. The file lies in `folder`. None where it
    /// was interrupted.
    pub fn make(
        source: &PictureSource,
        images: &[Image],
        wanted: &[usize],
        thumbnail: Thumbnail,
        folder: &Path,
        reporter: &dyn Reporter,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>> {
        let context = || format!("cannot write into {}", folder.display());
        let file = tempfile::tempfile_in(folder).with_context(context)?;
        let mut pictures = vec![Picture::None; images.len()];
        if matches!(source, PictureSource::Nothing) {
            return Ok(Some(Self { file, pictures }));
        }
        for &image in wanted {
            pictures[image] = Picture::Missing(Reason::Vanished);
        }
        let mut maker = Maker {
            thumbnail,
            images,
            spool: BufWriter::with_capacity(1 << 20, &file),
            offset: 0,
            done: 0,
            total: wanted.len() as u64,
            start: Instant::now(),
            reporter,
        };
        match source {
            PictureSource::Nothing => {}
            PictureSource::Folders(folders) => {
                for chunk in wanted.chunks(IMAGES_AT_ONCE) {
                    if interrupt.is_set() {
                        return Ok(None);
                    }
                    let chunk = chunk.iter().map(|&image| (image, locate(folders, &images[image].path))).collect::<Vec<_>>();
                    maker.add(&chunk, |path| load_located(path.as_deref()), &mut pictures).with_context(context)?;
                }
            }
            PictureSource::Dataset(stored) => {
                let mut places: HashMap<&str, usize> = HashMap::new();
                for &image in wanted {
                    places.insert(&images[image].id, image);
                }
                for &image in wanted {
                    places.insert(&images[image].path, image);
                }
                let mut entries = stored.entries();
                loop {
                    if interrupt.is_set() {
                        return Ok(None);
                    }
                    let mut chunk = Vec::with_capacity(IMAGES_AT_ONCE);
                    for entry in entries.by_ref() {
                        let entry = entry?;
                        let place = places.get(entry.image_path.as_str()).or_else(|| places.get(entry.image_id.as_str()));
                        if let (Some(&image), Content::Bytes(bytes)) = (place, entry.content) {
                            chunk.push((image, bytes));
                            if chunk.len() == IMAGES_AT_ONCE {
                                break;
                            }
                        }
                    }
                    if chunk.is_empty() {
                        break;
                    }
                    let limits = Limits::default();
                    maker.add(&chunk, |bytes| load_bytes(bytes, &limits, true), &mut pictures).with_context(context)?;
                }
            }
        }
        maker.spool.flush().with_context(context)?;
        drop(maker);
        Ok(Some(Self { file, pictures }))
    }

    pub fn of(&self, image: usize) -> Picture {
        self.pictures[image]
    }

    /// The JPEG file; None where there is no picture.
    pub fn jpeg(&self, image: usize) -> Result<Option<Vec<u8>>> {
        let Picture::Here { offset, bytes, .. } = self.pictures[image] else { return Ok(None) };
        let mut jpeg = vec![0; bytes];
        self.file.read_exact_at(&mut jpeg, offset).context("cannot read a thumbnail back")?;
        Ok(Some(jpeg))
    }
}

/// Thumbnails on their way into the file.
struct Maker<'a> {
    thumbnail: Thumbnail,
    images: &'a [Image],
    spool: BufWriter<&'a File>,
    offset: u64,
    done: u64,
    total: u64,
    start: Instant,
    reporter: &'a dyn Reporter,
}

impl Maker<'_> {
    fn add<T: Sync>(
        &mut self,
        chunk: &[(usize, T)],
        load: impl Fn(&T) -> Result<Loaded, Failure> + Sync,
        pictures: &mut [Picture],
    ) -> std::io::Result<()> {
        let make = |(image, from): &(usize, T)| {
            let loaded = load(from).map_err(|failure| failure.reason)?;
            let captioned = self.images[*image].sha256.as_deref();
            let changed = captioned.is_some_and(|captioned| captioned != loaded.content.sha256.to_string());
            Ok((self.thumbnail.of(&loaded.pixels), changed))
        };
        let made: Vec<Result<(Vec<u8>, bool), Reason>> = chunk.par_iter().map(make).collect();
        for ((image, _), made) in chunk.iter().zip(made) {
            pictures[*image] = match made {
                Err(reason) => Picture::Missing(reason),
                Ok((jpeg, changed)) => {
                    self.spool.write_all(&jpeg)?;
                    let offset = self.offset;
                    self.offset += jpeg.len() as u64;
                    Picture::Here { offset, bytes: jpeg.len(), changed }
                }
            };
        }
        self.done += chunk.len() as u64;
        let rate = self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        self.reporter.tick(&Tick {
            label: "thumbnails",
            done: self.done,
            total: self.total,
            rates: vec![("images/s", rate)],
            ..Tick::default()
        });
        Ok(())
    }
}

fn load_located(path: Option<&Path>) -> Result<Loaded, Failure> {
    match path {
        Some(path) => load(path, &Limits::default(), true),
        None => Err(Failure::new(Reason::Vanished, "in none of the folders")),
    }
}

/// The file of an image_path in one of the folders. A table is anyone's: a path that climbs out of the folder is not followed. Where a table
/// was made of several folders, its paths begin with a folder's last part.
fn locate(folders: &[PathBuf], image_path: &str) -> Option<PathBuf> {
    let relative = relative_path(image_path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let inside = |folder: &PathBuf| {
        let named = folder.file_name().and_then(|name| relative.strip_prefix(name).ok()).map(|rest| folder.join(rest));
        std::iter::once(folder.join(&relative)).chain(named)
    };
    let endings: &[&str] = if called_an_image(&relative) { &[] } else { &ENDINGS };
    let candidates = folders.iter().flat_map(inside).flat_map(|path| {
        let with_endings = endings.iter().map(|ending| {
            let mut name = path.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        });
        std::iter::once(path.clone()).chain(with_endings).collect::<Vec<_>>()
    });
    candidates.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Silent;

    #[test]
    fn paths_stay_inside_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for file in ["a/x.jpg", "a/5.png", "b/y z%.jpg", "secret.jpg"] {
            std::fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(file), "x").unwrap();
        }
        let folders = [a.clone(), b.clone()];
        let found = |path: &str| locate(&folders, path);
        assert_eq!(found("x.jpg"), Some(a.join("x.jpg")));
        assert_eq!(found("b/y z%25.jpg"), Some(b.join("y z%.jpg")));
        assert_eq!(found("5"), Some(a.join("5.png")));
        let absolute = folder.path().join("secret.jpg");
        for path in ["../secret.jpg", "a/../../secret.jpg", absolute.to_str().unwrap(), "x.jpg.png", ""] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn what_has_no_picture_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let picture = image::RgbImage::from_pixel(40, 30, image::Rgb([9, 9, 200]));
        picture.save(folder.path().join("good.png")).unwrap();
        std::fs::write(folder.path().join("bad.jpg"), "no picture").unwrap();
        let image = |path: &str, sha256: Option<&str>| Image {
            id: path.into(),
            path: path.into(),
            sha256: sha256.map(Into::into),
            ..Image::default()
        };
        let images = [image("good.png", Some("00")), image("bad.jpg", None), image("gone.jpg", None), image("good.png", None)];
        let thumbnail = Thumbnail { edge: 20, quality: 70, max_bytes: 4096 };
        let make = |source: &PictureSource, interrupt: &Interrupt| {
            Pictures::make(source, &images, &[0, 1, 2], thumbnail, folder.path(), &Silent, interrupt).unwrap()
        };
        let source = PictureSource::open(&[folder.path().into()], None).unwrap();
        let made = make(&source, &Interrupt::default()).unwrap();
        assert!(matches!(made.of(0), Picture::Here { changed: true, .. }));
        assert_eq!(made.of(1), Picture::Missing(Reason::UnsupportedFormat));
        assert_eq!((made.of(2), made.of(3)), (Picture::Missing(Reason::Vanished), Picture::None));
        assert!(made.jpeg(0).unwrap().unwrap().starts_with(b"\xFF\xD8") && made.jpeg(1).unwrap().is_none());
        assert_eq!(make(&PictureSource::Nothing, &Interrupt::default()).unwrap().of(0), Picture::None);
        let interrupt = Interrupt::default();
        interrupt.set();
        assert!(make(&source, &interrupt).is_none());
        assert!(PictureSource::open(&[folder.path().join("none")], None).is_err());
    }
}
