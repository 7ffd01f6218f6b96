//! `apr_table_t`: names and values, in order, names in any case.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::slice;

use super::{apr_table_elts, apr_table_entry_t, apr_table_get, apr_table_t, some_text, text};

/// A table of a request. Valid as long as the request, on its thread.
#[derive(Clone, Copy)]
pub struct Table<'a>(*mut apr_table_t, PhantomData<&'a apr_table_t>);

impl<'a> Table<'a> {
    /// `table` lives as long as `'a`.
    pub fn new(table: *mut apr_table_t) -> Table<'a> {
        Table(table, PhantomData)
    }

    pub fn get(self, name: &CStr) -> Option<&'a [u8]> {
        // SAFETY: the table is alive; the value is a C string of the same pool.
        some_text(unsafe { apr_table_get(self.0, name.as_ptr()) })
    }

    pub fn iter(self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        self.entries().iter().map(|entry| (text(entry.key), text(entry.val)))
    }

    pub fn len(self) -> usize {
        self.entries().len()
    }

    fn entries(self) -> &'a [apr_table_entry_t] {
        // SAFETY: the array of the table: `nelts` entries at `elts`, unchanged while it is read.
        unsafe {
            let array = &*apr_table_elts(self.0);
            if array.elts.is_null() {
                return &[];
            }
            slice::from_raw_parts(array.elts.cast(), usize::try_from(array.nelts).unwrap_or_default())
        }
    }
}
