//! From what a pickle claims about a tensor to a checked range of bytes, and from those bytes to its elements.

use super::DType;
use super::pickle::Tensor;

/// Where a storage's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Region {
    /// At this position of the file.
    At(u64),
    /// In this deflated entry of the zip file.
    Deflated(usize),
}

/// A storage that really is in the file.
#[derive(Debug, Clone)]
pub(super) struct StorageRegion {
    pub region: Region,
    /// Bytes the file holds of it.
    pub bytes: u64,
}

/// A tensor's elements inside a region, every bound checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub region: Region,
    /// First byte of the first element, from the region's start.
    pub start: u64,
    /// Bytes from the first element to the end of the last one.
    pub span: usize,
    /// In elements; None where the tensor is contiguous and row-major.
    pub strides: Option<Vec<usize>>,
}

/// Checks a tensor against its storage's real length. Returns its shape and its view, or what is wrong.
pub(super) fn locate(tensor: &Tensor, storage: &StorageRegion) -> Result<(Vec<usize>, View), String> {
    let size = tensor.dtype.size() as u64;
    let capacity = storage.bytes / size;
    let claimed = tensor.storage.numel.checked_mul(tensor.storage.dtype.map_or(1, |dtype| dtype.size() as u64));
    if claimed.is_none_or(|claimed| claimed > storage.bytes) {
        return Err(format!(
            "its storage claims {} elements and the file holds {} bytes of it",
            tensor.storage.numel, storage.bytes
        ));
    }
    let out_of_bounds = || {
        format!(
            "shape {:?} with strides {:?} at offset {} does not fit its storage of {capacity} elements",
            tensor.shape, tensor.strides, tensor.offset
        )
    };
    // An expanded tensor (stride 0) of more elements than are stored could claim any size.
    let numel = tensor.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    let numel = numel.filter(|&numel| numel <= capacity).ok_or_else(out_of_bounds)?;
    let shape = tensor.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| out_of_bounds())?;
    if numel == 0 {
        return Ok((shape, View { region: storage.region.clone(), start: 0, span: 0, strides: None }));
    }
    let first = tensor.storage.view_offset.checked_add(tensor.offset).ok_or_else(out_of_bounds)?;
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(first, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?));
    let last = last.filter(|&last| last < capacity).ok_or_else(out_of_bounds)?;
    let strides: Vec<usize> = tensor.strides.iter().map(|&stride| stride as usize).collect();
    let strides = Some(strides).filter(|strides| !is_row_major(&shape, strides));
    // `last < capacity` bounds both products by the file's length.
    let view = View { region: storage.region.clone(), start: first * size, span: ((last - first + 1) * size) as usize, strides };
    Ok((shape, view))
}

fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut wanted = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == wanted;
        wanted *= size;
        fits
    })
}

/// The elements of a view in row-major order, as float32. `bytes` are the view's span.
pub(super) fn gather(dtype: DType, shape: &[usize], strides: &[usize], bytes: &[u8]) -> Vec<f32> {
    let stored = dtype.to_f32(bytes);
    let numel = shape.iter().product();
    let mut out = Vec::with_capacity(numel);
    let mut index = vec![0usize; shape.len()];
    let mut at = 0;
    for _ in 0..numel {
        out.push(stored[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::pickle::Storage;
    use super::*;

    fn tensor(offset: u64, shape: &[u64], strides: &[u64]) -> Tensor {
        let storage = Storage { key: "0".into(), dtype: Some(DType::F32), numel: 6, view_offset: 0 };
        Tensor { storage, dtype: DType::F32, offset, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    fn six() -> StorageRegion {
        StorageRegion { region: Region::At(100), bytes: 24 }
    }

    #[test]
    fn views_are_read_through_their_strides() {
        let bytes: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let read = |tensor: &Tensor| {
            let (shape, view) = locate(tensor, &six()).unwrap();
            let span = &bytes[view.start as usize..view.start as usize + view.span];
            match view.strides {
                None => DType::F32.to_f32(span),
                Some(strides) => gather(DType::F32, &shape, &strides, span),
            }
        };
        assert_eq!(read(&tensor(0, &[2, 3], &[3, 1])), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(read(&tensor(0, &[3, 2], &[1, 3])), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(read(&tensor(1, &[2], &[2])), [1., 3.]);
        assert_eq!(read(&tensor(4, &[], &[])), [4.]);
        assert_eq!(read(&tensor(5, &[1, 1], &[9, 7])), [5.]);
        assert_eq!(read(&tensor(2, &[3], &[0])), [2., 2., 2.]);
        assert_eq!(read(&tensor(0, &[0, 9], &[1, 1])), [0f32; 0]);
    }

    #[test]
    fn nothing_reaches_outside_the_storage() {
        for (offset, shape, strides) in [
            (1, &[2u64, 3][..], &[3u64, 1][..]),
            (6, &[1], &[1]),
            (u64::MAX, &[1], &[1]),
            (0, &[2, 3], &[4, 1]),
            (0, &[2], &[u64::MAX]),
            (0, &[3], &[u64::MAX / 2 + 1]),
            (0, &[u64::MAX, 2], &[0, 0]),
            (0, &[7], &[0]),
            (0, &[1 << 40], &[0]),
        ] {
            let error = locate(&tensor(offset, shape, strides), &six()).unwrap_err();
            assert!(error.contains("does not fit"), "{error}");
        }
        let mut short = tensor(0, &[2], &[1]);
        short.storage.numel = 7;
        assert!(locate(&short, &six()).unwrap_err().contains("claims 7 elements"));
        short.storage.numel = u64::MAX;
        assert!(locate(&short, &six()).is_err());
    }
}
