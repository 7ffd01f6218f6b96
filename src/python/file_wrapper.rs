//! `wsgi.file_wrapper`: PEP 3333, "Optional Platform-Specific File Handling". A regular file leaves by the kernel; any
//! other object is read in blocks. The class itself is Python's to instantiate and stands in `boot.py`.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyo3_ffi as ffi;

use super::object::{self, Owned, Raised, Result};
use crate::exchange::FileRange;

/// What an instance wraps, from its position to its end, if the kernel can copy it.
pub(super) fn range(regular_file: &Owned, wrapper: &Owned) -> Option<FileRange> {
    let found = descriptor_and_position(regular_file, wrapper);
    if found.is_err() {
        // A closed file, or one that cannot tell its position: reading it in blocks raises what there is to raise.
        object::clear();
    }
    let (descriptor, offset) = found.ok()??;
    // SAFETY: the descriptor belongs to the file object that `wrapper` holds, open during this call.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.as_fd().try_clone_to_owned().ok()?;
    let size = regular_size(&file)?;
    Some(FileRange { file, offset, length: size.saturating_sub(offset) })
}

fn descriptor_and_position(regular_file: &Owned, wrapper: &Owned) -> Result<Option<(c_int, u64)>> {
    let pair = regular_file.call(&[wrapper])?;
    // SAFETY: attached.
    if unsafe { ffi::PyTuple_Check(pair.as_ptr()) } == 0 {
        return Ok(None);
    }
    // SAFETY: attached; `regular_file` gives None or a tuple of two integers.
    let (descriptor, offset) = unsafe {
        (
            ffi::PyLong_AsLong(ffi::PyTuple_GetItem(pair.as_ptr(), 0)),
            ffi::PyLong_AsLongLong(ffi::PyTuple_GetItem(pair.as_ptr(), 1)),
        )
    };
    match (c_int::try_from(descriptor), u64::try_from(offset)) {
        (Ok(descriptor), Ok(offset)) if descriptor >= 0 => Ok(Some((descriptor, offset))),
        _ => Err(Raised),
    }
}

fn regular_size(file: &OwnedFd) -> Option<u64> {
    let metadata = std::fs::File::from(file.try_clone().ok()?).metadata().ok()?;
    metadata.is_file().then_some(metadata.len())
}
