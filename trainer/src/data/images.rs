//! Images from a folder of PNG and JPEG files; where it has folders of its own, each is a class.
//!
//! An image is a vector of 0 to 1: channel after channel, line after line. It must not know what they show. Invariants: files
//! and classes are read in the order of their names; all images have one size, that of the first unless another is asked for.

use std::path::{Path, PathBuf};

use ::image::imageops::FilterType;
use ::image::{ColorType, DynamicImage};

use super::{Collected, DataError, MAX_INPUTS, Raw};
use crate::example::Input;

/// The endings of files that are read.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Reads a folder of images, in the size `[channels, height, width]` where one is given: 1 channel is grey, 3 are red, green
/// and blue. Images of another size are scaled to it; without one all must be as the first.
///
/// # Errors
/// The first file that is no image, or of another size.
pub fn read(folder: &Path, size: Option<[usize; 3]>) -> Result<Collected, DataError> {
    let (files, folders) = entries(folder)?;
    let mut groups: Vec<(Vec<PathBuf>, Option<u32>)> = vec![(files, None)];
    let mut classes = Vec::new();
    for folder in folders {
        let class = u32::try_from(classes.len()).ok();
        classes.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        groups.push((entries(&folder)?.0, class));
    }
    if !groups[0].0.is_empty() && groups.len() > 1 {
        let path = groups[0].0[0].clone();
        let reason = "lies beside folders, which are classes: which one is it of?".to_owned();
        return Err(DataError::Row { path, place: String::new(), reason });
    }
    let mut inputs: Vec<Raw> = Vec::new();
    let mut expected = size;
    for (path, truth) in groups.iter().flat_map(|(files, class)| files.iter().map(move |file| (file, *class)))
    {
        if inputs.len() == MAX_INPUTS {
            return Err(DataError::TooLarge { path: folder.to_owned(), limit: MAX_INPUTS, unit: "files" });
        }
        let wrong = |reason: String| DataError::Row { path: path.clone(), place: String::new(), reason };
        let image =
            ::image::open(path).map_err(|error| wrong(format!("cannot be read as an image: {error}")))?;
        let image = match size {
            Some([_, height, width])
                if (image.height() as usize, image.width() as usize) != (height, width) =>
            {
                image.resize_exact(width as u32, height as u32, FilterType::Triangle)
            }
            _ => image,
        };
        let channels = size.map_or_else(|| own_channels(&image), |[channels, ..]| channels);
        let found = [channels, image.height() as usize, image.width() as usize];
        let first = *expected.get_or_insert(found);
        if found != first {
            let reason = format!(
                "is {found:?} (channels, height, width), but the first image is {first:?}: `data.image` makes them one size"
            );
            return Err(wrong(reason));
        }
        inputs.push(Raw {
            place: path.display().to_string(),
            input: Input::Vector(values(&image, channels)),
            truth,
        });
    }
    if inputs.is_empty() {
        return Err(DataError::Empty { path: folder.to_owned(), reason: "no PNG or JPEG file" });
    }
    Ok(Collected { inputs, classes, skipped: 0 })
}

/// The image files and the folders in a folder, each in the order of their names; hidden ones are left out.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let failed = |error| DataError::read(folder, error);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let ending =
            path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
        if hidden {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
        } else if ENDINGS.contains(&ending.as_str()) {
            files.push(path);
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

fn own_channels(image: &DynamicImage) -> usize {
    match image.color() {
        ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16 => 1,
        _ => 3,
    }
}

/// The values of an image, channel after channel.
fn values(image: &DynamicImage, channels: usize) -> Vec<f32> {
    if channels == 1 {
        return image.to_luma32f().into_raw();
    }
    let pixels = image.to_rgb32f().into_raw();
    (0..3).flat_map(|channel| pixels.iter().skip(channel).step_by(3).copied()).collect()
}

#[cfg(test)]
mod tests {
    use ::image::{GrayImage, Rgb, RgbImage};

    use super::*;

    #[test]
    fn folders_are_classes_and_images_are_planes() {
        let place = tempfile::tempdir().unwrap();
        for (class, red) in [("blue", 0u8), ("red", 255)] {
            std::fs::create_dir(place.path().join(class)).unwrap();
            let image = RgbImage::from_fn(2, 1, |x, _| Rgb([red, x as u8 * 255, 255 - red]));
            image.save(place.path().join(class).join("a.png")).unwrap();
            image.save(place.path().join(class).join("B.JPG")).unwrap();
        }
        std::fs::write(place.path().join("red/notes.txt"), "no image").unwrap();
        let found = read(place.path(), None).unwrap();
        assert_eq!(found.classes, ["blue", "red"]);
        assert_eq!(
            found.inputs.iter().map(|raw| raw.truth).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1), Some(1)]
        );
        // `B.JPG` stands before `a.png`.
        let planes = |at: usize| match &found.inputs[at].input {
            Input::Vector(values) => values.clone(),
            Input::Bytes(_) => panic!("an image is a vector"),
        };
        assert_eq!(planes(1), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(planes(3), [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        let grey = read(place.path(), Some([1, 4, 4])).unwrap();
        assert!(grey.inputs.iter().all(|raw| raw.input.width() == 16));
    }

    #[test]
    fn a_file_that_does_not_fit_is_named() {
        let place = tempfile::tempdir().unwrap();
        let say = || {
            let error = read(place.path(), None).unwrap_err().to_string();
            error.replace(&place.path().display().to_string(), "FOLDER")
        };
        assert_eq!(say(), "the data set `FOLDER` is empty: no PNG or JPEG file");
        GrayImage::new(3, 2).save(place.path().join("a.png")).unwrap();
        assert_eq!(read(place.path(), None).unwrap().inputs[0].input, Input::Vector(vec![0.0; 6]));
        GrayImage::new(2, 2).save(place.path().join("b.png")).unwrap();
        assert_eq!(
            say(),
            "`FOLDER/b.png` is [1, 2, 2] (channels, height, width), but the first image is [1, 2, 3]: `data.image` makes them one size"
        );
        std::fs::write(place.path().join("b.png"), "no image").unwrap();
        assert!(say().starts_with("`FOLDER/b.png` cannot be read as an image: "), "{}", say());
        std::fs::create_dir(place.path().join("class")).unwrap();
        assert!(say().starts_with("`FOLDER/a.png` lies beside folders"), "{}", say());
    }
}
