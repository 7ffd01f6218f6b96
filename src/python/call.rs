//! Runs one request: environ, the call, and the blocks of what it returned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;

use pyo3_ffi as ffi;

use super::application::Application;
use super::errors::Errors;
use super::input::Input;
use super::interpreter::Interpreter;
use super::object::{self, Owned, Raised, Result, block, set_item, type_name};
use super::session::Session;
use super::start_response::StartResponse;
use super::thread::{Attached, detached};
use super::{file_wrapper, traceback, types};
use crate::error::{Code, Report};
use crate::exchange::{Block, Exchange, Outcome};
use crate::log::Level;
use crate::run::{self, Call, Rest, Returned};

/// Runs one request on a thread that stays attached for the next: calls the application and sends what it returns. Loads
/// the application first where that has not happened yet. Ends the exchange in every case, with [`Exchange::finish`]. No
/// panic leaves.
pub fn serve(attached: &mut Attached<'_>, application: &Application, exchange: Box<dyn Exchange>) {
    // A busy thread stays attached over many requests.
    attached.interpreter.releases.drain();
    if let Some(left) = run(attached, application, exchange) {
        attached.detached(|| left.finish());
    }
}

impl Interpreter {
    /// As [`serve`], on a thread that is detached, and attached no longer than the application needs it.
    pub fn serve(self: &Arc<Self>, application: &Application, exchange: Box<dyn Exchange>) {
        if let Some(left) = self.attach(|attached| run(attached, application, exchange)) {
            left.finish();
        }
    }
}

/// What is left of a request when Python is not needed any more.
struct Left {
    session: Arc<Session>,
    rest: Rest,
}

impl Left {
    /// Detached.
    fn finish(self) {
        let Left { session, rest } = self;
        if catch_unwind(AssertUnwindSafe(|| rest.finish(&session.lease))).is_err() {
            run::abandon(&session.lease);
        }
    }
}

fn run(attached: &mut Attached<'_>, application: &Application, mut exchange: Box<dyn Exchange>) -> Option<Left> {
    let callable = match application.callable(attached) {
        Ok(callable) => callable,
        Err(report) => {
            let text = format!(
                "{} application \"{}\" is not there: its load failed, for the reason logged before; the client got status 500",
                report.code,
                application.name()
            );
            attached.detached(|| {
                exchange.log(Level::Error, &text);
                exchange.finish(Outcome::Failed);
                drop(exchange);
            });
            return None;
        }
    };
    let environ = attached.interpreter.environ.dict(exchange.request());
    let body = exchange.request().body();
    let session = Session::new(attached.interpreter.clone(), exchange);
    let entered = session.enter();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let environ = environ.and_then(|environ| with_streams(environ, &session, body));
        let mut call =
            PythonCall { attached, application, session: &session, callable, environ, returned: None, iterator: None };
        run::run(&mut call, &session.lease)
    }));
    drop(entered);
    match ran {
        Ok(rest) => rest.map(|rest| Left { session, rest }),
        Err(_) => {
            detached(|| run::abandon(&session.lease));
            None
        }
    }
}

fn with_streams(environ: Owned, session: &Arc<Session>, body: crate::request::BodyLength) -> Result<Owned> {
    let interpreter = &session.interpreter;
    let input = types::instance(&interpreter.types.input, Input::new(session.clone(), body))?;
    let errors = types::instance(&interpreter.types.errors, Errors(session.clone()))?;
    set_item(&environ, &interpreter.environ.input, &input)?;
    set_item(&environ, &interpreter.environ.errors, &errors)?;
    Ok(environ)
}

struct PythonCall<'a, 'b> {
    attached: &'a mut Attached<'b>,
    application: &'a Application,
    session: &'a Arc<Session>,
    callable: Owned,
    environ: Result<Owned>,
    /// What the application returned, for `close()`.
    returned: Option<Owned>,
    iterator: Option<Owned>,
}

impl PythonCall<'_, '_> {
    fn raised(&self) -> Report {
        traceback::raised(self.attached.interpreter, self.application.name())
    }

    fn start(&mut self) -> Result<Owned> {
        let environ = self.environ.as_ref().map_err(|Raised| Raised)?;
        let class = &self.session.interpreter.types.start_response;
        let start_response = types::instance(class, StartResponse(self.session.clone()))?;
        // SAFETY: attached; all three are alive, and null ends the arguments.
        Owned::new(unsafe {
            ffi::PyObject_CallFunctionObjArgs(
                self.callable.as_ptr(),
                environ.as_ptr(),
                start_response.as_ptr(),
                null_mut::<ffi::PyObject>(),
            )
        })
    }

    /// The items of a list or tuple, if it is exactly that: such a value has no `close()`, and its blocks all exist.
    fn whole(&self, returned: &Owned) -> Option<std::result::Result<Vec<Block>, Report>> {
        // SAFETY: attached.
        let (is_list, is_tuple) = unsafe {
            (ffi::PyList_CheckExact(returned.as_ptr()) != 0, ffi::PyTuple_CheckExact(returned.as_ptr()) != 0)
        };
        if !is_list && !is_tuple {
            return None;
        }
        // SAFETY: attached; it has a size.
        let count = unsafe { ffi::PyObject_Size(returned.as_ptr()) };
        let item = |index| {
            // SAFETY: attached; the type was checked; gives a borrowed reference.
            let item = unsafe {
                if is_list {
                    ffi::PyList_GetItem(returned.as_ptr(), index)
                } else {
                    ffi::PyTuple_GetItem(returned.as_ptr(), index)
                }
            };
            let item = Owned::borrowed(item).map_err(|Raised| self.raised())?;
            self.block(item)
        };
        Some((0..count).map(item).collect())
    }

    fn block(&self, item: Owned) -> std::result::Result<Block, Report> {
        let class = type_name_if_not_bytes(&item);
        block(item, &self.attached.interpreter.releases).ok_or_else(|| {
            let name = self.application.name();
            let class = class.unwrap_or_default();
            let remedy = match class.as_str() {
                "str" => "encode the text: text.encode(\"utf-8\")",
                "int" => "return a list that holds the bytes, not the bytes themselves: [body]",
                _ => "yield bytes (PEP 3333)",
            };
            Report::new(Code::BlockType, format!("application \"{name}\" gave a block of type {class}, not bytes"))
                .remedy(remedy)
        })
    }
}

/// Whether it has what iteration needs, so that an error comes from the application's own code.
fn is_iterable(object: &Owned) -> bool {
    let has = |name: &std::ffi::CStr| {
        // SAFETY: attached; never fails.
        unsafe { ffi::PyObject_HasAttrString(object.as_ptr(), name.as_ptr()) != 0 }
    };
    has(c"__iter__") || has(c"__getitem__")
}

fn type_name_if_not_bytes(item: &Owned) -> Option<String> {
    object::as_bytes(item).is_none().then(|| type_name(item))
}

impl Call for PythonCall<'_, '_> {
    fn call(&mut self) -> std::result::Result<Returned, Report> {
        let returned = self.start().map_err(|Raised| self.raised())?;
        if let Some(blocks) = self.whole(&returned) {
            return blocks.map(Returned::Whole);
        }
        let boot = &self.attached.interpreter.boot;
        // SAFETY: attached.
        let is_file = unsafe { ffi::Py_TYPE(returned.as_ptr()) }.cast() == boot.file_wrapper.as_ptr();
        let file = if is_file { file_wrapper::range(&boot.regular_file, &returned) } else { None };
        self.returned = Some(returned);
        Ok(file.map_or(Returned::Blocks, Returned::File))
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, Report> {
        if self.iterator.is_none() {
            let returned = self.returned.as_ref().map_or(null_mut(), Owned::as_ptr);
            // SAFETY: attached; alive while `returned` is.
            let iterator = Owned::new(unsafe { ffi::PyObject_GetIter(returned) });
            let iterator = iterator.map_err(|Raised| {
                let report = self.raised();
                if self.returned.as_ref().is_some_and(is_iterable) {
                    return report;
                }
                let class = self.returned.as_ref().map_or_else(String::new, type_name);
                let name = self.application.name();
                let cause = format!("application \"{name}\" returned a {class}, which cannot be iterated");
                Report { code: Code::BlockType, cause, ..report }.remedy("return an iterable of bytes (PEP 3333)")
            })?;
            self.iterator = Some(iterator);
        }
        let iterator = self.iterator.as_ref().map_or(null_mut(), Owned::as_ptr);
        // SAFETY: attached; alive while `iterator` is.
        match Owned::new(unsafe { ffi::PyIter_Next(iterator) }) {
            Ok(item) => self.block(item).map(Some),
            // SAFETY: attached.
            Err(Raised) if unsafe { ffi::PyErr_Occurred() }.is_null() => Ok(None),
            Err(Raised) => Err(self.raised()),
        }
    }

    fn close(&mut self) -> std::result::Result<(), Report> {
        // A generator that another reference keeps alive is closed by its own close(), never by its end alone.
        self.iterator = None;
        let Some(returned) = self.returned.take() else { return Ok(()) };
        let close = match returned.attribute(c"close") {
            Ok(close) => close,
            Err(Raised) => {
                object::clear();
                return Ok(());
            }
        };
        close.call(&[]).map(drop).map_err(|Raised| {
            let report = self.raised();
            let cause = format!("in close() of the response, {}", report.cause);
            Report { code: Code::CloseRaised, cause, ..report }
        })
    }

    fn end(&mut self) {
        // What was printed without a line end belongs to this request, not to the next one of this thread.
        if Session::take_printed() && self.attached.interpreter.boot.flush.call(&[]).is_err() {
            object::clear();
        }
        if self.session.has_unfinished_line() {
            let session = self.session;
            self.attached.detached(|| session.flush_errors());
        }
    }

    fn detached<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        self.attached.detached(wait)
    }
}
