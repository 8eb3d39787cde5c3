# The only part of the gate that looks outside of the repository. A stranger can ignore it: where nothing is found there,
# each function says so in one line and the gate goes on.

# Builds stand-ins for the public base images, where no registry can be reached; a Docker engine comes with them.
stand_in_images() {
    if [ -x ../shared/local-images/build ]; then
        ../shared/local-images/build || echo "the stand-ins could not be built; the public images are tried"
    fi
}

# Prints a directory with RustSec's advisories, where they cannot be fetched.
advisory_database() {
    local archive=../shared/advisory-db.tar.gz database=target/tools/advisory-db
    [ -f "$archive" ] || return 1
    mkdir -p "$database" && tar -xzf "$archive" -C "$database" --strip-components=1 && echo "$database"
}

# Prints a directory with the schemas of custom resources and a checker.
custom_resource_definitions() {
    [ -f ../shared/crds/check.py ] && echo ../shared/crds
}
