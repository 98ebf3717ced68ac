package faultfs

import (
	"context"
	"fmt"
	"path"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Mount makes the disk appear at an empty directory, until the function that it
// returns is called. That fails while a program uses the disk. It needs
// /dev/fuse and the rights of root.
//
// The program that calls Mount must not map files of the disk into its memory:
// a page fault would stop the goroutine that has to serve it.
func (d *Disk) Mount(dir string) (unmount func() error, err error) {
	// The library opens a file on the disk, for a moment, that a process would
	// inherit which is started meanwhile, and keep the disk busy by.
	syscall.ForkLock.RLock()
	server, err := fs.Mount(dir, &node{disk: d}, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultfs", Name: "faultfs"},
	})
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, fmt.Errorf("cannot mount a disk at %s: %w", dir, err)
	}
	return func() error {
		if err := server.Unmount(); err != nil {
			return fmt.Errorf("cannot unmount the disk at %s: %w", dir, err)
		}
		return nil
	}, nil
}

// A node is a file or a directory for the kernel.
type node struct {
	fs.Inode
	disk *Disk
	file *file // nil: the topmost directory
}

// The methods by which the library knows what the file system can do.
var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeMknoder   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
)

func (n *node) child(name string) string { return path.Join(n.Path(nil), name) }

func (n *node) inode(ctx context.Context, f *file, out *fuse.EntryOut) *fs.Inode {
	n.disk.attributes(f, &out.Attr)
	return n.NewInode(ctx, &node{disk: n.disk, file: f}, fs.StableAttr{Mode: f.mode & syscall.S_IFMT, Ino: f.number + 1})
}

func (d *Disk) attributes(f *file, out *fuse.Attr) {
	if f == nil {
		out.Mode = syscall.S_IFDIR | 0o700
		return
	}
	out.Mode, out.Size, out.Nlink = f.mode, uint64(d.size(f)), 1
	out.Blksize = block
	out.Blocks = (out.Size + sector - 1) / sector
}

// Lookup implements [fs.NodeLookuper].
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	f := n.disk.lookup(n.child(name))
	if f == nil {
		return nil, syscall.ENOENT
	}
	return n.inode(ctx, f, out), 0
}

// Readdir implements [fs.NodeReaddirer].
func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var entries []fuse.DirEntry
	for name, f := range n.disk.list(n.Path(nil)) {
		entries = append(entries, fuse.DirEntry{Name: name, Mode: f.mode, Ino: f.number + 1})
	}
	return fs.NewListDirStream(entries), 0
}

// Create implements [fs.NodeCreater].
func (n *node) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	f, errno := n.disk.create(n.child(name), mode&0o777|syscall.S_IFREG)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return n.inode(ctx, f, out), nil, 0, 0
}

// Mkdir implements [fs.NodeMkdirer].
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	f, errno := n.disk.create(n.child(name), mode&0o777|syscall.S_IFDIR)
	if errno != 0 {
		return nil, errno
	}
	return n.inode(ctx, f, out), 0
}

// Mknod implements [fs.NodeMknoder]. It is how a Unix socket gets its name.
func (n *node) Mknod(ctx context.Context, name string, mode, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	f, errno := n.disk.create(n.child(name), mode&(0o777|syscall.S_IFMT))
	if errno != 0 {
		return nil, errno
	}
	return n.inode(ctx, f, out), 0
}

// Unlink implements [fs.NodeUnlinker].
func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	return n.disk.remove(n.child(name))
}

// Rmdir implements [fs.NodeRmdirer].
func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	return n.disk.remove(n.child(name))
}

// Rename implements [fs.NodeRenamer].
func (n *node) Rename(_ context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags != 0 {
		return syscall.EINVAL
	}
	return n.disk.rename(n.child(name), path.Join(parent.EmbeddedInode().Path(nil), newName))
}

// Getattr implements [fs.NodeGetattrer].
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.disk.attributes(n.file, &out.Attr)
	return 0
}

// Setattr implements [fs.NodeSetattrer]. Nothing but the size is kept.
func (n *node) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && n.file != nil {
		if errno := n.disk.truncate(n.file, int64(size)); errno != 0 {
			return errno
		}
	}
	n.disk.attributes(n.file, &out.Attr)
	return 0
}

// Open implements [fs.NodeOpener].
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	errno := n.disk.open(flags&syscall.O_ACCMODE != syscall.O_RDONLY)
	if errno == 0 && flags&syscall.O_TRUNC != 0 {
		errno = n.disk.truncate(n.file, 0)
	}
	return nil, 0, errno
}

// Read implements [fs.NodeReader].
func (n *node) Read(_ context.Context, _ fs.FileHandle, to []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(to[:n.disk.read(n.file, to, at)]), 0
}

// Write implements [fs.NodeWriter].
func (n *node) Write(_ context.Context, _ fs.FileHandle, data []byte, at int64) (uint32, syscall.Errno) {
	if errno := n.disk.write(n.file, data, at); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

// Fsync implements [fs.NodeFsyncer], for directories too.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return n.disk.sync(n.file)
}
