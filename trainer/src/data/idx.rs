//! Images from IDX files, plain or gzipped: a file of images and, where the truth is known, a file of their labels.
//!
//! The format is that of MNIST and of the data sets made in its shape (yann.lecun.com/exdb/mnist): two zero bytes, the
//! type, the number of extents, each extent as four bytes from the highest, then the values. It must not know what is
//! seen in the images. Invariant: a file is read whole, or refused by its name and the first thing that is wrong.

use std::io::Read;
use std::path::Path;

use super::csv::{MAX_BYTES, MAX_COLUMNS};
use super::{Collected, DataError, MAX_INPUTS, Raw, unzipped};
use crate::example::Input;

/// The type of the values that are read: bytes without a sign.
const UNSIGNED_BYTES: u8 = 8;
/// The most extents of a file: more than any image has.
const MAX_EXTENTS: u8 = 8;

/// Reads images, and the class of each from `labels`. A value of 0 to 255 becomes 0 to 1; the values of an image keep
/// their order, so one of `[28, 28]` is a vector of 784, line after line.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn read(images: &Path, labels: Option<&Path>) -> Result<Collected, DataError> {
    let file = Idx::read(images)?;
    let [count, extents @ ..] = &file.extents[..] else {
        return Err(wrong(images, "holds no images: it has no extents".to_owned()));
    };
    if extents.is_empty() {
        return Err(wrong(images, "holds one value an input; is it the file of the labels?".to_owned()));
    }
    let width: usize = extents.iter().product();
    if *count == 0 || width == 0 {
        return Err(DataError::Empty { path: images.to_owned(), reason: "no image" });
    }
    let limits = [(*count, MAX_INPUTS, "images"), (width, MAX_COLUMNS, "values an image")];
    if let Some((_, limit, unit)) = limits.into_iter().find(|(found, limit, _)| found > limit) {
        return Err(DataError::TooLarge { path: images.to_owned(), limit, unit });
    }
    let truths = labels.map(|labels| read_labels(labels, *count, images)).transpose()?;
    let classes = truths.iter().flatten().max().map_or(0, |most| u32::from(*most) + 1);
    let inputs = file.values.chunks_exact(width).enumerate().map(|(at, values)| Raw {
        place: format!("{}:{at}", images.display()),
        input: Input::Vector(values.iter().map(|value| f32::from(*value) / 255.0).collect()),
        truth: truths.as_ref().map(|truths| u32::from(truths[at])),
    });
    Ok(Collected {
        inputs: inputs.collect(),
        classes: (0..classes).map(|class| class.to_string()).collect(),
        skipped: 0,
    })
}

fn read_labels(path: &Path, expected: usize, images: &Path) -> Result<Vec<u8>, DataError> {
    let file = Idx::read(path)?;
    match &file.extents[..] {
        [count] if *count == expected => Ok(file.values),
        [count] => Err(wrong(
            path,
            format!("holds {count} labels, but `{}` holds {expected} images", images.display()),
        )),
        _ => Err(wrong(path, format!("holds no labels: its extents are {:?}", file.extents))),
    }
}

fn wrong(path: &Path, reason: String) -> DataError {
    DataError::Idx { path: path.to_owned(), reason }
}

/// A file's content.
struct Idx {
    extents: Vec<usize>,
    values: Vec<u8>,
}

impl Idx {
    fn read(path: &Path) -> Result<Self, DataError> {
        let failed = |error| DataError::read(path, error);
        let mut bytes = unzipped(path)?;
        let mut head = Vec::new();
        bytes.by_ref().take(4).read_to_end(&mut head).map_err(failed)?;
        let [0, 0, kind, count] = head[..] else {
            return Err(wrong(path, format!("is no IDX file: it begins with {head:02x?}")));
        };
        if kind != UNSIGNED_BYTES {
            return Err(wrong(
                path,
                format!("holds values of type {kind:#04x}; only unsigned bytes (0x08) are read"),
            ));
        }
        if count > MAX_EXTENTS {
            return Err(wrong(path, format!("states {count} extents, more than {MAX_EXTENTS}")));
        }
        let mut stated = Vec::new();
        bytes.by_ref().take(4 * u64::from(count)).read_to_end(&mut stated).map_err(failed)?;
        if stated.len() < 4 * usize::from(count) {
            return Err(wrong(path, format!("ends within its {count} extents")));
        }
        let extents: Vec<usize> = stated
            .chunks_exact(4)
            .map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]) as usize)
            .collect();
        let size = extents.iter().try_fold(1u64, |size, extent| size.checked_mul(*extent as u64));
        let Some(size) = size.filter(|size| *size <= MAX_BYTES) else {
            let limit = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
            return Err(DataError::TooLarge { path: path.to_owned(), limit, unit: "bytes" });
        };
        let mut values = Vec::new();
        // One byte more than there should be, to tell a file that goes on from one that ends.
        bytes.take(size + 1).read_to_end(&mut values).map_err(failed)?;
        if values.len() as u64 == size {
            return Ok(Self { extents, values });
        }
        let found = if values.len() as u64 > size { "more".to_owned() } else { values.len().to_string() };
        Err(wrong(path, format!("holds {found} values, but its extents {extents:?} make {size}")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn file(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn idx(extents: &[u32], values: &[u8]) -> Vec<u8> {
        let extents = extents.iter().flat_map(|extent| extent.to_be_bytes());
        [0, 0, 8, (extents.clone().count() / 4) as u8]
            .into_iter()
            .chain(extents)
            .chain(values.to_vec())
            .collect()
    }

    #[test]
    fn images_and_labels_are_read_zipped_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let images = idx(&[2, 1, 3], &[0, 51, 255, 102, 0, 0]);
        let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
        zipped.write_all(&images).unwrap();
        let labels = file(&folder, "labels", &idx(&[2], &[3, 0]));
        for content in [images, zipped.finish().unwrap()] {
            let images = file(&folder, "images", &content);
            let collected = read(&images, Some(&labels)).unwrap();
            assert_eq!(collected.classes, ["0", "1", "2", "3"]);
            let expected = [(vec![0.0, 0.2, 1.0], Some(3)), (vec![0.4, 0.0, 0.0], Some(0))];
            for (raw, (vector, truth)) in collected.inputs.iter().zip(expected) {
                assert_eq!((&raw.input, raw.truth), (&Input::Vector(vector), truth));
            }
            let without = read(&images, None).unwrap();
            assert!(without.classes.is_empty() && without.inputs.iter().all(|raw| raw.truth.is_none()));
        }
    }

    #[test]
    fn a_mistake_is_answered_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let good = idx(&[2, 1, 3], &[0; 6]);
        let labels = idx(&[2], &[0, 1]);
        let check = |images: &[u8], labels: &[u8], expected: &str| {
            let (images, labels) = (file(&folder, "images", images), file(&folder, "labels", labels));
            let error = read(&images, Some(&labels)).unwrap_err().to_string();
            assert_eq!(error.replace(&format!("{}/", folder.path().display()), ""), expected);
        };
        check(b"P5", &labels, "`images` is no IDX file: it begins with [50, 35]");
        check(
            &[0, 0, 13, 1, 0, 0, 0, 0],
            &labels,
            "`images` holds values of type 0x0d; only unsigned bytes (0x08) are read",
        );
        check(&[0, 0, 8, 200], &labels, "`images` states 200 extents, more than 8");
        check(&[0, 0, 8, 3, 0, 0], &labels, "`images` ends within its 3 extents");
        check(&good[..20], &labels, "`images` holds 4 values, but its extents [2, 1, 3] make 6");
        check(
            &[&good[..], &[7]].concat(),
            &labels,
            "`images` holds more values, but its extents [2, 1, 3] make 6",
        );
        check(&labels, &labels, "`images` holds one value an input; is it the file of the labels?");
        check(&good, &good, "`labels` holds no labels: its extents are [2, 1, 3]");
        check(&good, &idx(&[3], &[0; 3]), "`labels` holds 3 labels, but `images` holds 2 images");
        check(&idx(&[0, 2, 2], &[]), &labels, "the data set `images` is empty: no image");
        check(
            &idx(&[u32::MAX, u32::MAX, u32::MAX], &[]),
            &labels,
            "the data set `images` has more than 8589934592 bytes",
        );
        check(
            &idx(&[2, 1 << 21], &[0; 1 << 22]),
            &labels,
            "the data set `images` has more than 1048576 values an image",
        );
        let missing = read(&folder.path().join("missing"), None).unwrap_err();
        assert!(matches!(missing, DataError::Read { .. }), "{missing}");
    }
}
