//! Regular expressions of httpd's.

use std::ffi::c_char;
use std::ptr::NonNull;

use super::{AP_REG_EXTENDED, Pool, ap_pregcomp, ap_pregsub, ap_regex_t, ap_regexec, ap_regmatch_t};

/// A compiled expression, in the configuration's pool.
#[derive(Debug, Clone, Copy)]
pub struct Pattern(NonNull<ap_regex_t>);

impl Pattern {
    pub fn new(pool: Pool, text: &str) -> Option<Pattern> {
        // SAFETY: pool and string are alive; gives null for what is no expression.
        let compiled = unsafe { ap_pregcomp(pool.as_ptr(), pool.string(text.as_bytes()), AP_REG_EXTENDED as _) };
        NonNull::new(compiled).map(Pattern)
    }

    /// What `target` becomes with the groups of the match in `text`, and where the match ends; if there is one.
    pub fn substitute<'a>(self, pool: Pool, text: &[u8], target: &[u8]) -> Option<(&'a [u8], usize)> {
        let text: *const c_char = pool.string(text);
        let mut groups = [ap_regmatch_t { rm_so: -1, rm_eo: -1 }; GROUPS];
        // SAFETY: the expression lives as long as the configuration; there is room for as many groups.
        if unsafe { ap_regexec(self.0.as_ptr(), text, GROUPS, groups.as_mut_ptr(), 0) } != 0 {
            return None;
        }
        let target = pool.string(target);
        // SAFETY: as above; the result is in the pool, or null.
        let found = unsafe { ap_pregsub(pool.as_ptr(), target, text, GROUPS, groups.as_mut_ptr()) };
        let [whole, ..] = groups;
        Some((super::some_text(found)?, usize::try_from(whole.rm_eo).ok()?))
    }
}

/// `$0` to `$9`, as httpd's own `AP_MAX_REG_MATCH`.
const GROUPS: usize = 10;
