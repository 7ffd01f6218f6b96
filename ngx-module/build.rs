//! Binds nginx: configures a copy of its sources where they are not configured yet, and reads the headers from there.
//!
//! `NGINX_SOURCE_DIR` names the sources (default: Debian's `nginx-dev`), `NGINX_BUILD_DIR` the directory `configure` filled
//! (default: `objs` in the sources, or a copy made here). A module serves one version of nginx, built with one set of flags.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    for variable in ["NGINX_SOURCE_DIR", "NGINX_BUILD_DIR"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for file in ["build.rs", "wrapper.h", "shim.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let tree = Tree::find();
    let includes = tree.includes();
    for directory in &includes {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    compile_shim(&includes);
    bind(&includes);
    link();
}

/// nginx's sources, configured.
struct Tree {
    sources: PathBuf,
    build: PathBuf,
}

impl Tree {
    fn find() -> Tree {
        let sources = env::var_os("NGINX_SOURCE_DIR").map_or_else(|| PathBuf::from(DEBIAN_SOURCES), PathBuf::from);
        if !sources.join("src/core/nginx.h").is_file() {
            fail(&format!(
                "the headers of nginx are not in \"{}\"; install them (apt-get install nginx-dev) or name the sources of your \
                 nginx with NGINX_SOURCE_DIR",
                sources.display()
            ));
        }
        if let Some(build) = env::var_os("NGINX_BUILD_DIR").map(PathBuf::from) {
            if !build.join("ngx_auto_config.h").is_file() {
                fail(&format!(
                    "NGINX_BUILD_DIR \"{}\" holds no ngx_auto_config.h; run nginx's configure first",
                    build.display()
                ));
            }
            return Tree { sources, build };
        }
        let build = sources.join("objs");
        if build.join("ngx_auto_config.h").is_file() && build.join("Makefile").is_file() {
            return Tree { sources, build };
        }
        configure_copy(&sources)
    }

    /// The include directories of nginx's own Makefile.
    fn includes(&self) -> Vec<PathBuf> {
        let makefile = self.build.join("Makefile");
        let text = std::fs::read_to_string(&makefile)
            .unwrap_or_else(|error| fail(&format!("\"{}\" cannot be read: {error}", makefile.display())));
        let text = text.replace("\\\n", " ");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("ALL_INCS ="))
            .unwrap_or_else(|| fail(&format!("\"{}\" has no ALL_INCS", makefile.display())));
        let mut includes: Vec<PathBuf> =
            line.split_whitespace().filter(|word| *word != "-I").map(|word| self.sources.join(word)).collect();
        // Named relative to where configure ran, which may be another directory than the sources are in now.
        includes.push(self.build.clone());
        includes.retain(|directory| directory.is_dir());
        includes
    }
}

/// Debian ships sources and flags but no result of `configure`, and in a directory that is not ours to write to.
fn configure_copy(sources: &Path) -> Tree {
    let copy = out_dir().join("nginx");
    let build = copy.join("objs");
    let mark = copy.join(".configured");
    let version = std::fs::read_to_string(sources.join("src/core/nginx.h")).unwrap_or_default();
    if std::fs::read_to_string(&mark).is_ok_and(|text| text == version) {
        return Tree { sources: copy, build };
    }
    std::fs::remove_dir_all(&copy).ok();
    run(Command::new("cp").arg("-rL").arg(sources).arg(&copy));
    let script = if copy.join("conf_flags").is_file() {
        ". ./conf_flags; ./configure --with-compat \"${NGX_CONF_FLAGS[@]}\" --builddir=objs"
    } else {
        "./configure --with-compat --with-debug --with-threads --with-http_ssl_module --with-http_v2_module \
         --with-http_realip_module --builddir=objs"
    };
    run(Command::new("bash").arg("-c").arg(script).current_dir(&copy));
    if let Err(error) = std::fs::write(&mark, version) {
        fail(&format!("\"{}\" cannot be written: {error}", mark.display()));
    }
    Tree { sources: copy, build }
}

/// The few lines of C for what a Rust binding cannot evaluate: macros and the module's signature.
fn compile_shim(includes: &[PathBuf]) {
    cc::Build::new().file("shim.c").includes(includes).warnings(false).compile("highball_shim");
}

fn bind(includes: &[PathBuf]) {
    let bindings = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(includes.iter().map(|directory| format!("-I{}", directory.display())))
        .allowlist_item("(ngx|NGX|nginx|hb)_.*")
        .allowlist_item("NGINX_VER")
        .blocklist_item("NGX_MODULE_SIGNATURE.*")
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .merge_extern_blocks(true)
        .wrap_unsafe_ops(true)
        .layout_tests(false)
        .derive_debug(false)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .unwrap_or_else(|error| fail(&format!("the headers of nginx cannot be bound: {error}")));
    let path = out_dir().join("nginx.rs");
    if let Err(error) = bindings.write_to_file(&path) {
        fail(&format!("\"{}\" cannot be written: {error}", path.display()));
    }
}

fn link() {
    // Without an rpath the loader silently takes another libpython of the same name.
    if let Some(directory) = env::var("DEP_HIGHBALL_PYTHON_LIBDIR").ok().filter(|directory| !directory.is_empty()) {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-rpath,{directory}");
    }
    // nginx closes and opens its modules on reload; threads of ours and Python itself would be left without their code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

fn out_dir() -> PathBuf {
    env::var_os("OUT_DIR").map_or_else(|| fail("OUT_DIR is not set"), PathBuf::from)
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            let last: Vec<&str> = said.lines().rev().take(20).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            fail(&format!("{command:?} failed ({}):\n{}", output.status, last.join("\n")))
        }
        Err(error) => fail(&format!("{command:?} could not be started: {error}")),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}

const DEBIAN_SOURCES: &str = "/usr/share/nginx/src";
